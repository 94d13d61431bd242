"""The `minimand` command. What `up` starts is tested end to end in tests/flows."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.keys.service import is_well_formed
from app.logs import redact_url
from app.settings import Settings

Run = Callable[..., Result]

COMMANDS = ("up", "api", "worker", "inference", "migrate", "fetch", "prune", "backup", "restore", "demo", "settings")
GROUPS = {"keys": ("create", "list", "rotate", "revoke"), "projects": ("create", "list")}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command with no settings but those given, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MINIMAND_")]:
        monkeypatch.delenv(name)
    # The options write to the environment; what they add is taken out again.
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def invoke(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, arguments, env=environment)

    return invoke


def test_an_operator_without_a_key_makes_lists_replaces_and_revokes_them(run: Run, tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    assert run("migrate", *home).exit_code == 0
    project, admin = run("projects", "create", "support", *home).output.split()
    assert f"{project}  support" in run("projects", "list", *home).output
    key, secret = run("keys", "create", "ci", "--scope", "jobs", "--project", "support", *home).output.split()
    assert is_well_formed(secret)
    assert is_well_formed(admin)
    newer, newest = run("keys", "rotate", key, "--overlap", "0", "--project", project, *home).output.split()
    assert newest != secret
    assert run("keys", "revoke", newer, "--project", "support", *home).output == f"{newer} is revoked.\n"
    listed = run("keys", "list", "--project", "support", *home).output
    assert len(listed.splitlines()) == 3
    assert f"{newer}  {newest[:9]}…  jobs" in listed
    assert "ci: revoked" in listed
    assert secret not in listed


def test_a_name_that_two_projects_have_is_no_answer_to_which(run: Run, tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    run("migrate", *home)
    one, other = (run("projects", "create", "default", *home).output.split()[0] for _ in range(2))
    run("keys", "create", "ours", "--scope", "jobs", *home)
    assert "ours" in run("keys", "list", "--project", "proj_default", *home).output
    result = run("keys", "list", "--project", "default", *home)
    assert result.exit_code == 1
    assert result.output == f"3 projects are called 'default': say which by its id, of proj_default, {one}, {other}.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "list", "--project", "nowhere"), "There is no project 'nowhere'."),
        (("keys", "revoke", "key_none"), "There is no key 'key_none'."),
        (("keys", "create", "k", "--scope", "job"), "scopes.0: Input should be 'datasets', 'jobs'"),
    ],
)
def test_what_cannot_be_done_with_keys_is_said_in_a_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    home = ("--home", str(tmp_path / "home"))
    run("migrate", *home)
    result = run(*arguments, *home)
    assert result.exit_code == 1
    assert result.output.startswith(said)
    assert result.output.count("\n") == 1


def test_forwarded_headers_are_believed_from_the_proxies_of_the_settings(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def stop_here(*_: object, **named: object) -> None:
        given.update(named)
        raise SystemExit

    monkeypatch.setattr("uvicorn.Config", stop_here)
    assert run("migrate").exit_code == 0
    run("api", FORWARDED_ALLOW_IPS="*")
    assert given["forwarded_allow_ips"] == "127.0.0.1,::1"
    run("api", MINIMAND_TRUSTED_PROXIES="10.0.0.0/8")
    assert given["forwarded_allow_ips"] == "10.0.0.0/8"


def test_where_traces_cannot_be_sent_the_api_does_not_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    said = run("api", MINIMAND_TRACING_URL="http://127.0.0.1:4318")
    assert said.exit_code == 1
    assert "minimand[tracing]" in said.output


def test_help_lists_every_command(run: Run) -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for command in (*COMMANDS, *GROUPS):
        assert f"\n  {command} " in shown.output
    # A description that is cut short says too little.
    assert "..." not in shown.output.partition("Commands:")[2]


@pytest.mark.parametrize(
    "command", [(name,) for name in COMMANDS] + [(group, name) for group in GROUPS for name in GROUPS[group]]
)
def test_every_command_takes_a_home(run: Run, command: tuple[str, ...]) -> None:
    shown = run(*command, "--help").output
    assert "--home" in shown
    assert ("--port" in shown) == (command[0] in ("up", "api", "inference", "demo"))


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = "import sys, app.cli; print(*{'pydantic', 'sqlalchemy', 'uvicorn', 'fastapi', 'celery'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_settings_lists_every_variable_with_its_description(run: Run) -> None:
    shown = run("settings").output
    for name, field in Settings.model_fields.items():
        assert f"MINIMAND_{name.upper()} " in shown
        assert field.description is not None
        assert field.description in shown


def test_settings_shows_values_in_force_beside_defaults(run: Run) -> None:
    lines = run("settings", "--home", "elsewhere", MINIMAND_MAX_ATTEMPTS="7").output.splitlines()
    assert ["MINIMAND_HOME", "elsewhere", ".minimand"] in [line.split()[:3] for line in lines]
    assert ["MINIMAND_MAX_ATTEMPTS", "7", "3"] in [line.split()[:3] for line in lines]


def test_settings_hides_passwords(run: Run) -> None:
    shown = run(
        "settings",
        MINIMAND_DATABASE_URL="postgresql+psycopg://me:s3cret@host/db",
        MINIMAND_BROKER_URL="redis://:s3cret@host:6379/0",
    ).output
    assert "s3cret" not in shown
    assert "postgresql+psycopg://me:***@host/db" in shown
    assert "redis://:***@host:6379/0" in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p@ss/w:rd@host/0", "redis://:***@host/0"),
        ("sentinel://:one@a:1;sentinel://:two@b:2", "sentinel://:***@b:2"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("plain", "plain"),
    ],
)
def test_redaction_hides_too_much_rather_than_too_little(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_a_bad_variable_is_named_with_its_value(run: Run) -> None:
    refused = run("settings", MINIMAND_PORT="eighty")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("MINIMAND_PORT is not usable: input should be a valid integer")
    assert "(it is 'eighty')" in refused.stderr


def test_what_kills_processes_on_purpose_is_refused_outside_of_tests(run: Run) -> None:
    refused = run("settings", MINIMAND_CRASH_FILE="/tmp/crash")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("MINIMAND_CRASH_FILE is not usable: ")
    assert "MINIMAND_ENVIRONMENT" in refused.stderr
    assert run("settings", MINIMAND_CRASH_FILE="/tmp/crash", MINIMAND_ENVIRONMENT="test").exit_code == 0


def test_a_bad_json_variable_is_named(run: Run) -> None:
    refused = run("settings", MINIMAND_BASE_MODELS="bert=/models/bert")
    assert refused.exit_code == 2
    assert refused.stderr == "MINIMAND_BASE_MODELS isn't valid JSON.\n"


def test_migrate_says_what_it_did_and_shows_the_admin_key_once(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = run("migrate", "--home", str(home))
    key = (home / "admin.key").read_text().strip()
    assert first.exit_code == 0
    assert "went from nothing to" in first.output
    assert key in first.output
    assert stat.S_IMODE((home / "admin.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700

    second = run("migrate", "--home", str(home))
    assert "is up to date" in second.output
    assert key not in second.output


def test_migrate_explains_a_database_that_does_not_answer(run: Run) -> None:
    refused = run("migrate", MINIMAND_DATABASE_URL="postgresql+psycopg://me:s3cret@127.0.0.1:1/db")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("The database cannot be used now: ")
    assert "s3cret" not in refused.stderr


@pytest.mark.parametrize("role", ["api", "inference"])
def test_serving_on_an_old_schema_is_refused_with_the_command_to_run(run: Run, tmp_path: Path, role: str) -> None:
    refused = run(role, "--home", str(tmp_path / "home"), "--port", "0")
    assert refused.exit_code == 1
    assert "Run `minimand migrate`" in refused.stderr


def test_up_on_a_taken_port_names_it_and_the_option(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run("up", "--home", str(tmp_path / "home"), "--port", str(port))
    assert refused.exit_code == 1
    assert f"port {port}" in refused.stderr
    assert "--port" in refused.stderr


def test_nothing_is_served_over_a_base_model_that_is_unfit(run: Run, tmp_path: Path) -> None:
    run("migrate", "--home", str(tmp_path / "home"))
    refused = run("api", "--home", str(tmp_path / "home"), MINIMAND_BASE_MODELS=f'{{"mine": "{tmp_path}/nowhere"}}')
    assert refused.exit_code == 1
    assert "MINIMAND_BASE_MODELS, 'mine': there is no folder" in refused.stderr


def test_nothing_is_served_on_a_gpu_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert run("migrate", "--home", str(tmp_path / "home")).exit_code == 0
    refused = run("inference", "--home", str(tmp_path / "home"), MINIMAND_INFERENCE_DEVICE="cuda:99")
    assert refused.exit_code == 1
    assert "MINIMAND_INFERENCE_DEVICE is 'cuda:99', and torch" in refused.output
    assert "GPUs. Without a GPU leave it out." in refused.output


def test_a_database_that_is_away_does_not_tell_its_password(run: Run, tmp_path: Path) -> None:
    url = "postgresql+psycopg://user:canary-5f1c9e@127.0.0.1:1/db"
    refused = run("migrate", "--home", str(tmp_path / "home"), MINIMAND_DATABASE_URL=url)
    assert refused.exit_code == 1
    assert "The database cannot be used now" in refused.stderr
    assert "canary" not in refused.output
