"""The `minimand` command: reads settings, wires the parts, prints what an operator must know.

It holds no rule of the service. Heavy imports wait inside the commands, so that `--help` answers at once.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli_keys import keys, projects
from app.console import Command, explained, fail, home_option, load_settings, open_store, opened, variable_of

if TYPE_CHECKING:
    from app.backup import Summary
    from app.settings import Settings
    from app.supervisor import ChildSpec

# Over a trainer's own time to stop: a worker must outlive its trainer's last checkpoint.
_STOP_MARGIN_SECONDS = 10
# Clients keep idle connections for up to a minute; closing first would make their next request fail.
_KEEP_ALIVE_SECONDS = 65
_GRACEFUL_SECONDS = 5
_START_PATIENCE_SECONDS = 60
# Connections are open files: more than one event loop serves.
_OPEN_FILES = 65_536
# Made and not yet let go of, when the garbage collector looks among them: those of some 300 callers.
_COLLECT_AT_OBJECTS = 50_000


def _port_option(command: Command) -> Command:
    return click.option(
        "--port", type=click.IntRange(0, 65535), help="Port of the API; 0 takes a free one (MINIMAND_PORT)."
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="minimand")
def main() -> None:
    """Labelled text in, a served classifier out.

    `minimand up` runs everything in one place. The other commands run one part, for installations spread over several
    machines. Every setting is an environment variable: see `minimand settings`.
    """


main.add_command(keys)
main.add_command(projects)


@main.command()
@home_option
@_port_option
def up(home: Path | None, port: int | None) -> None:
    """Start the broker, the API and a worker; Ctrl-C stops them."""
    from app.broker import EmbeddedBroker
    from app.logs import configure_logging
    from app.supervisor import HomeInUseError, Supervisor, hold_home

    settings = load_settings(home, port)
    configure_logging(settings)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_home(settings.home))
        except HomeInUseError as error:
            fail(str(error))
        with _listen(settings) as listener:
            real_port = int(listener.getsockname()[1])
        environment = {"MINIMAND_HOME": str(settings.home.resolve()), "MINIMAND_PORT": str(real_port)}
        children = []
        if settings.broker_url is None:
            broker = EmbeddedBroker(settings.home)
            broker.prepare()
            environment["MINIMAND_BROKER_URL"] = broker.url
            children.append(_child("broker", broker.command(), environment))
        _migrate(settings)
        children += [_child(role, _own_command(role), environment) for role in ("api", "worker")]
        _announce_when_ready(settings, real_port)
        stop_timeout_seconds = settings.stop_timeout_seconds + _STOP_MARGIN_SECONDS
        sys.exit(Supervisor(children, stop_timeout_seconds=stop_timeout_seconds).run())


@main.command()
@home_option
@_port_option
def api(home: Path | None, port: int | None) -> None:
    """Serve the whole HTTP API."""
    _serve("api", home, port)


@main.command()
@home_option
@_port_option
def inference(home: Path | None, port: int | None) -> None:
    """Serve predictions only: a replica behind a load balancer."""
    _serve("inference", home, port)


@main.command()
@home_option
def worker(home: Path | None) -> None:
    """Run queued jobs: one training slot for each device."""
    from app.supervisor import tie_to_supervisor

    # SIGKILL, since a worker asked to stop waits for its trainer's last checkpoint.
    tie_to_supervisor(signal.SIGKILL)
    load_settings(home)
    # A new program, not an import: the service does not know its workers. The tie survives exec.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "workers"])  # noqa: S606 - no shell is meant


@main.command()
@home_option
def migrate(home: Path | None) -> None:
    """Bring the schema up to date; make the first admin key."""
    settings = load_settings(home)
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    _migrate(settings)


@main.command()
@home_option
def fetch(home: Path | None) -> None:
    """Fetch base models named hf:… from their hub."""
    from app.base_models.hub import HubModel
    from app.base_models.hub import fetch as fetch_model
    from app.errors import UnfitBaseError

    settings = load_settings(home)
    for name, source in settings.base_models.items():
        if isinstance(source, HubModel):
            try:
                folder = fetch_model(name, source, settings.home.resolve())
            except (OSError, UnfitBaseError) as error:
                fail(f"'{name}' was not fetched. {error}")
            click.echo(f"{name}: {folder}")


@main.command()
def openapi() -> None:
    """Print the OpenAPI document, as /openapi.json has it."""
    import json
    import tempfile

    from app.main import create_app
    from app.settings import Settings

    with tempfile.TemporaryDirectory() as home:
        document = create_app(Settings(home=Path(home))).openapi()
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@home_option
def prune(dry_run: bool, home: Path | None) -> None:
    """Remove old checkpoints and orphaned files now."""
    settings = load_settings(home)
    with opened(settings) as (database, store):
        from app.retention import Retention

        count = total = 0
        for removal in Retention(database, store, settings).sweep(is_dry=dry_run):
            click.echo(f"{_shown_bytes(removal.bytes):>10}  {removal.what}: {removal.name}")
            count, total = count + 1, total + removal.bytes
    verb = "would go" if dry_run else "went"
    click.echo(f"{count} thing{'' if count == 1 else 's'}, {_shown_bytes(total)} {verb}.")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@home_option
def backup(folder: Path, home: Path | None) -> None:
    """Copy all rows and files into a new FOLDER."""
    from app.backup import BackupError, back_up

    settings = load_settings(home)
    with opened(settings) as (database, store):
        try:
            summary = back_up(database, store, folder)
        except (BackupError, OSError) as error:
            fail(f"No backup was made. {error}")
    click.echo(f"{folder} holds {_shown_backup(summary)}. All of it verifies.")
    for fault in summary.unsound:
        click.echo(f"Damaged in the store, and so in the backup: {fault}", err=True)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@home_option
def restore(folder: Path, home: Path | None) -> None:
    """Bring a backup back, into an empty home."""
    from app.backup import BackupError
    from app.backup import restore as bring_back
    from app.db.session import Database
    from app.errors import InvalidInputError
    from app.supervisor import HomeInUseError, hold_home

    settings = load_settings(home)
    with explained():
        database = Database(settings.resolved_database_url)
        try:
            with hold_home(settings.home):
                summary, requeued = bring_back(
                    database, open_store(settings), folder, max_attempts=settings.max_attempts
                )
        except (BackupError, HomeInUseError, InvalidInputError, OSError) as error:
            fail(f"Nothing was restored. {error}")
        finally:
            database.close()
    click.echo(f"Restored {_shown_backup(summary)}. Jobs that were running and wait again: {requeued}.")
    click.echo("API keys are those of the backup; it holds no secret of theirs, so keep your copy of admin.key.")


@main.command()
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Your own labelled file.")
@click.option("--text", help="Its column that holds the text.")
@click.option("--label", help="Its column that holds the label.")
@home_option
@_port_option
def demo(data: Path | None, text: str | None, label: str | None, home: Path | None, port: int | None) -> None:
    """Upload a dataset, train, predict, and keep serving."""
    settings = load_settings(home, port)
    from app.demo import run_demo

    sys.exit(run_demo(settings, data=data, text=text, label=label))


@main.command(name="settings")
@home_option
def show_settings(home: Path | None) -> None:
    """List every MINIMAND_* variable, with the value in force."""
    settings = load_settings(home)
    rows = [("VARIABLE", "VALUE", "DEFAULT", "WHAT IT DOES")]
    for name, field in type(settings).model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        value = _shown(getattr(settings, name))
        rows.append((variable_of(name), value, _shown(default), field.description or ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        click.echo("  ".join([*padded, row[3]]))


def _shown(value: object) -> str:
    from app.logs import redact_url

    if value is None:
        return "-"
    return redact_url(f"{value:g}" if isinstance(value, float) else str(value))


def _shown_backup(summary: "Summary") -> str:
    counts = ", ".join(f"{summary.rows[name]} {name}" for name in ("datasets", "jobs", "models"))
    return f"{counts}, {_shown_bytes(summary.bytes)}"


def _shown_bytes(count: int) -> str:
    """In the largest decimal unit of which there is one."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _migrate(settings: "Settings") -> None:
    """Migrate, and on the first run make the admin key: printed once, and kept in the home."""
    from app.db.migrate import upgrade
    from app.db.session import Database
    from app.keys.service import KeyService

    with explained():
        done = upgrade(settings.resolved_database_url)
        if done.before == done.after:
            click.echo(f"The database's schema is up to date ({done.after}).")
        else:
            click.echo(f"The database's schema went from {done.before or 'nothing'} to {done.after}.")
        database = Database(settings.resolved_database_url)
        try:
            key = KeyService(database).ensure_admin_key(settings.admin_key_path)
        finally:
            database.close()
    if key is not None:
        click.echo(f"\n  Admin key: {key}\n  It is shown this once, and kept in {settings.admin_key_path}\n")


def _serve(role: str, home: Path | None, port: int | None) -> None:
    gc.disable()  # what is imported stays: looking through it, again and again, took 0.3 of 2.1 s
    from app.logs import configure_logging
    from app.supervisor import tie_to_supervisor
    from app.tracing import TracingUnavailableError, configure_tracing

    # SIGKILL, since a graceful end waits for open connections.
    tie_to_supervisor(signal.SIGKILL)
    settings = load_settings(home, port)
    configure_logging(settings)
    try:
        configure_tracing(settings, role)
    except TracingUnavailableError as error:
        fail(str(error))

    with opened(settings):
        pass

    # A call's few texts are tokenized in less time than it takes to hand them to another thread.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import uvicorn

    from app.errors import UnfitBaseError
    from app.http.connection_limit import most_connections
    from app.http.slow_clients import WatchedProtocol
    from app.main import create_app
    from ml.inference.backends import EngineError

    try:
        app = create_app(settings, role=role)
    except UnfitBaseError as error:
        fail(str(error))
    except EngineError as error:
        fail(f"MINIMAND_INFERENCE_DEVICE is '{settings.inference_device}', and {error}. Without a GPU leave it out.")
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=WatchedProtocol,
        access_log=False,
        # The root logger is configured above; uvicorn's own settings would print its lines in another form.
        log_config=None,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
    )
    server = uvicorn.Server(config)
    app.state.connections = server.server_state.connections
    app.state.max_connections = most_connections(_allow_open_files())
    _spare_the_collector()
    with _listen(settings) as listener:
        click.echo(f"Listening on {_url(settings.host, listener.getsockname()[1])}")
        server.run(sockets=[listener])


def _spare_the_collector() -> None:
    """Let the garbage collector look through little, and seldom.

    It stopped every call for 120 to 220 ms every three seconds to look through what was imported, and took 17% of the
    event loop's time at 512 callers: each has some 150 objects, and their coming and going was taken for garbage. Calls
    leave next to no cycles behind.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AT_OBJECTS)
    gc.enable()


def _allow_open_files() -> int:
    """As many as this process may allow itself: the usual soft limit of 1,024 is for programs that use select()."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _OPEN_FILES
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(soft, most)


def _listen(settings: "Settings") -> socket.socket:
    """A listening socket. Connections made before the application is ready wait in its queue."""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        fail(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. "
            "Choose another port with --port N (0 takes a free one)."
        )
    return listener


def _child(name: str, argv: list[str], environment: dict[str, str]) -> "ChildSpec":
    from app.supervisor import ChildSpec

    return ChildSpec(name=name, argv=argv, environment=environment)


def _own_command(role: str) -> list[str]:
    # -P: a folder named `app` where the operator happens to stand must not be taken for ours.
    return [sys.executable, "-P", "-m", "app.cli", role]


def _url(host: str, port: int) -> str:
    """An address a browser on this machine can open."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _announce_when_ready(settings: "Settings", port: int) -> None:
    url = _url(settings.host, port)

    def wait() -> None:
        give_up_at = time.monotonic() + _START_PATIENCE_SECONDS
        while not _answers(url):
            if time.monotonic() > give_up_at:
                click.echo(f"The API does not answer at {url} yet; the lines above should say why.", err=True)
                return
            time.sleep(0.1)
        click.echo(f"\n  Minimand is ready: {url}\n  Documentation:     {url}/docs\n  Ctrl-C stops it.\n")

    threading.Thread(target=wait, name="announce", daemon=True).start()


def _answers(url: str) -> bool:
    import http.client
    from urllib.parse import urlsplit

    # Not urllib.request: a proxy set for the outside world must not be asked for our own address.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=1)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
