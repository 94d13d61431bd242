"""What the tests of rows share."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import psycopg
import pytest
from sqlalchemy import make_url

from app.db.migrate import upgrade
from app.db.session import Database
from tests.app.predictions.house import House


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The application with one trained model."""
    house = House(tmp_path_factory.mktemp("predictions"))
    yield house
    house.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def job_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One of each kind for all tests of a file: making a PostgreSQL database takes longer than most of them."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'minimand.sqlite3'}"
    else:
        name = request.module.__name__.rpartition(".")[2]
        server: str = request.getfixturevalue("postgres_server")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = make_url(server).set(drivername="postgresql+psycopg", database=name)
        url = url.render_as_string(hide_password=False)
    upgrade(url)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture(params=["folder", "memory"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a file store is: in a folder, and in memory through fsspec."""
    if request.param == "folder":
        yield str(tmp_path / "files")
        return
    root = f"/{uuid4().hex}"
    yield f"memory:/{root}"
    memory = fsspec.filesystem("memory")
    if memory.exists(root):
        memory.rm(root, recursive=True)
