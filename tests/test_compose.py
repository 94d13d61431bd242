"""The Dockerfile and the compose file, checked against the code they run."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from sqlalchemy import make_url

from app.cli import main
from app.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
REQUIRED = {"POSTGRES_PASSWORD": "Pg1", "VALKEY_PASSWORD": "Vk1"}

_VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?P<operator>:[-?])?(?P<rest>[^}]*)\}")


def _substitute(text: str) -> str:
    """What compose does with `${NAME:-default}` and `${NAME:?message}` where only the required names are set."""

    def replace(match: re.Match[str]) -> str:
        if match["operator"] == ":-":
            return match["rest"]
        return REQUIRED[match["name"]]

    return _VARIABLE.sub(replace, text).replace("$$", "$")


def _services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(_substitute(COMPOSE.read_text()))["services"]
    return services


def _own_services() -> dict[str, Any]:
    return {name: service for name, service in _services().items() if service["image"] == "minimand"}


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def _all_of(instruction: str) -> list[str]:
    return [rest for name, rest in _instructions() if name == instruction]


def _settings(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("MINIMAND_")]:
        monkeypatch.delenv(name)
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_the_services_are_those_of_the_design() -> None:
    assert set(_own_services()) == {"migrate", "api", "inference", "gpu-inference", "worker", "gpu-worker"}
    assert set(_services()) - set(_own_services()) == {"postgres", "valkey"}


@pytest.mark.parametrize("name", _own_services())
def test_every_command_is_one_of_ours(name: str) -> None:
    (command,) = _own_services()[name]["command"]
    assert command in main.commands


@pytest.mark.parametrize("name", _own_services())
def test_every_variable_is_a_setting_whose_value_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _own_services()[name]
    for variable in service["environment"]:
        assert variable.removeprefix("MINIMAND_").lower() in Settings.model_fields, variable
    settings = _settings(service, monkeypatch)
    assert settings.storage_url == "/files"


@pytest.mark.parametrize("name", _own_services())
def test_database_and_broker_are_services_on_their_own_ports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(_own_services()[name], monkeypatch)
    database, broker = make_url(str(settings.database_url)), make_url(str(settings.broker_url))
    postgres = _services()["postgres"]["environment"]
    assert (database.drivername, database.host, database.port) == ("postgresql+psycopg", "postgres", 5432)
    assert (database.username, database.password, database.database) == (
        postgres["POSTGRES_USER"],
        postgres["POSTGRES_PASSWORD"],
        postgres["POSTGRES_DB"],
    )
    assert (broker.host, broker.port) == ("valkey", 6379)
    assert broker.password == _services()["valkey"]["environment"]["VALKEY_PASSWORD"]


def test_no_secret_has_a_default() -> None:
    used = [match for match in _VARIABLE.finditer(COMPOSE.read_text()) if match["name"].endswith("_PASSWORD")]
    assert {match["name"] for match in used} == set(REQUIRED)
    assert {match["operator"] for match in used} == {":?"}


def test_the_api_is_published_on_loopback_at_the_port_it_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    api = _services()["api"]
    settings = _settings(api, monkeypatch)
    assert api["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    assert settings.host == "0.0.0.0"
    assert settings.port == Settings.model_fields["port"].default
    assert _all_of("EXPOSE") == [str(settings.port)]


def test_replicas_are_none_unless_scaled_and_each_takes_a_port_of_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = _services()["inference"]
    settings = _settings(replica, monkeypatch)
    assert (replica["command"], replica["scale"]) == (["inference"], 0)
    address, of_host, port = replica["ports"][0].split(":")
    assert (address, settings.host, settings.port) == ("127.0.0.1", "0.0.0.0", int(port))
    first, last = map(int, of_host.split("-"))
    assert settings.port < first < last
    published = {name for name, service in _services().items() if "ports" in service}
    assert published == {"api", "inference", "gpu-inference"}


def test_everything_waits_for_the_migration() -> None:
    for name in ("api", "inference", "gpu-inference", "worker", "gpu-worker"):
        assert _services()[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert _services()["migrate"]["restart"] == "no"
    for service in _services().values():
        assert set(service.get("depends_on", {})) <= set(_services())


def test_files_are_shared_and_every_volume_is_declared() -> None:
    declared = yaml.safe_load(COMPOSE.read_text())["volumes"]
    mounts = {name: service.get("volumes", []) for name, service in _services().items()}
    assert {mount.split(":")[0] for some in mounts.values() for mount in some} == set(declared)
    for name in ("api", "inference", "gpu-inference", "worker", "gpu-worker"):
        assert "files:/files" in mounts[name]


def test_devices_of_the_two_workers() -> None:
    worker, gpu_worker = _services()["worker"], _services()["gpu-worker"]
    assert worker["environment"]["MINIMAND_DEVICES"] == "cpu"
    assert "deploy" not in worker
    assert gpu_worker["environment"]["MINIMAND_DEVICES"] == "auto"
    assert gpu_worker["profiles"] == ["gpu"]
    assert_has_gpus(gpu_worker)


def test_a_replica_with_a_gpu_answers_there(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, other = _services()["gpu-inference"], _services()["inference"]
    assert _settings(replica, monkeypatch).inference_device == "cuda"
    assert _settings(other, monkeypatch).inference_device == "cpu"
    assert (replica["command"], replica["profiles"]) == (["inference"], ["gpu-inference"])
    port = int(replica["ports"][0].split(":")[1])
    assert port == int(other["ports"][0].split(":")[1].split("-")[1]) + 1
    assert_has_gpus(replica)


def assert_has_gpus(service: dict[str, Any]) -> None:
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", ["worker", "gpu-worker"])
def test_a_worker_has_time_to_write_its_last_checkpoint(name: str) -> None:
    seconds = int(_services()[name]["stop_grace_period"].removesuffix("s"))
    assert seconds >= Settings.model_fields["stop_timeout_seconds"].default + 10


def test_the_health_check_is_that_of_what_answers_http_alone() -> None:
    checked = [name for name, service in _own_services().items() if "healthcheck" not in service]
    assert checked == ["api", "inference", "gpu-inference"]
    for name in set(_own_services()) - set(checked):
        assert _own_services()[name]["healthcheck"] == {"disable": True}


@pytest.mark.parametrize(("answering_path", "status"), [("/healthz", 0), ("/elsewhere", 1)])
def test_the_health_check_asks_for_healthz(answering_path: str, status: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == answering_path else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (healthcheck,) = _all_of("HEALTHCHECK")
    program, *arguments = json.loads(healthcheck.partition("CMD ")[2])
    assert program == "python"
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "MINIMAND_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:1"}
        ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        server.shutdown()
    assert ended.returncode == status


def test_torch_is_installed_before_the_project_and_from_another_index_only_if_one_is_given() -> None:
    first, second = [command for command in _all_of("RUN") if "pip install" in command]
    assert first == 'pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$TORCH"'
    assert second == "pip install --no-cache-dir '.[postgres,s3,tracing]'"
    assert "TORCH_INDEX_URL=" in _all_of("ARG")


def test_the_image_fits_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (torch,) = [Requirement(arg.removeprefix("TORCH=")) for arg in _all_of("ARG") if arg.startswith("TORCH=")]
    (allowed,) = [r for r in map(Requirement, project["project"]["dependencies"]) if r.name == "torch"]
    (pin,) = torch.specifier
    assert allowed.specifier.contains(pin.version)
    assert f"TORCH  ?= {torch}\n" in (ROOT / "Makefile").read_text()
    assert {"postgres", "s3"} <= set(project["project"]["optional-dependencies"])

    copied = {word for arguments in _all_of("COPY") for word in arguments.split()[:-1]}
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == packages | {"pyproject.toml", project["project"]["readme"]}


def test_the_image_runs_one_of_our_commands_as_an_ordinary_user() -> None:
    names = [name for name, _ in _instructions()]
    assert _all_of("USER") == ["minimand"]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert _all_of("ENTRYPOINT") == ['["minimand"]']
    (command,) = json.loads(_all_of("CMD")[-1])
    assert command in main.commands
    assert _all_of("VOLUME") == ["/data"]
    assert "MINIMAND_HOME=/data" in _all_of("ENV")[0].split()
