"""Brings a database's schema to the one the code expects, and refuses to serve on any other.

It knows no table. After a change to `app/db/tables.py`, write the next revision with

    .venv/bin/python -m app.db.migrate NAME

which compares the tables with the revisions so far and writes `migrations/versions/DATE_NAME.py`; then read that file.
(While the first revision is unreleased it is regenerated instead: delete it, and run the command with `initial`.)
"""

import contextlib
import datetime as dt
import fcntl
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.pool import NullPool

import migrations
from app.db.session import Database

# Any number will do, as long as every process takes the same one.
_ADVISORY_LOCK = 0x6D696E696D616E64  # "minimand"


class SchemaError(RuntimeError):
    """The database's schema is not the one this code was written for."""


@dataclass(frozen=True)
class Upgrade:
    """The revisions before and after; `before` is None for an empty database."""

    before: str | None
    after: str


def upgrade(database_url: str) -> Upgrade:
    """Bring the database to the newest revision. Any number of processes may call this at once."""
    with migrating(database_url) as connection:
        before = _revision(connection)
        _refuse_unknown(before)
        command.upgrade(_config(connection), "head")
        return Upgrade(before, head_revision())


def downgrade(database_url: str, revision: str) -> None:
    """Bring the database back to an older revision ("base" drops everything)."""
    with migrating(database_url) as connection:
        command.downgrade(_config(connection), revision)


def require_current(database: Database) -> None:
    """Raise SchemaError unless the schema is the one the code expects."""
    found = current_revision(database)
    _refuse_unknown(found)
    if found != head_revision():
        raise SchemaError(
            f"The database's schema is at {found or 'nothing (it is empty)'}, and this version of Minimand needs "
            f"{head_revision()}. Run `minimand migrate` with the same settings, then start again."
        )


def current_revision(database: Database) -> str | None:
    """The revision that a database is at; None where it holds nothing of ours."""
    with database.read() as session:
        return _revision(session.connection())


def head_revision() -> str:
    """The newest revision the code knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise SchemaError("This installation of Minimand holds no migrations: it is incomplete.")
    return head


def write_revision(name: str) -> Path:
    """Write the revision that leads from the newest one to the tables as they are now."""
    today = dt.datetime.now(tz=dt.UTC).strftime("%Y%m%d")
    with tempfile.TemporaryDirectory() as folder, migrating(f"sqlite:///{folder}/scratch.sqlite3") as connection:
        config = _config(connection)
        command.upgrade(config, "head")
        script = command.revision(config, message=name, rev_id=f"{today}_{name}", autogenerate=True)
    if script is None or isinstance(script, list):
        raise SchemaError("Alembic wrote no single revision.")
    return Path(script.path)


def _refuse_unknown(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaError(
            f"The database's schema is at {revision}, which this version of Minimand (newest: {head_revision()}) does "
            "not know: a newer version has migrated it. Install that version, then run `minimand migrate`."
        )


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # The values pass through ConfigParser, to which a percent sign means something.
    config.set_main_option("script_location", migrations.__path__[0].replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s")
    config.attributes["connection"] = connection
    return config


@contextlib.contextmanager
def migrating(database_url: str) -> Iterator[Connection]:
    """One transaction that holds the whole migration, while every other migration waits."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _hold(path.with_name(path.name + ".migrate-lock")), _begin(_sqlite_engine(database_url)) as connection:
            yield connection
            _check_foreign_keys(connection)
    else:
        with _begin(create_engine(url, poolclass=NullPool)) as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield connection


@contextlib.contextmanager
def _begin(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@contextlib.contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Wait for a lock file: SQLite's own lock is given up after the busy timeout, and a migration may take longer."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sqlite_engine(database_url: str) -> Engine:
    engine = Database(database_url).engine
    event.listen(engine, "connect", _suspend_foreign_keys)
    return engine.execution_options(minimand_write=True)


def _suspend_foreign_keys(connection: Any, _record: object) -> None:
    # Batch mode copies a table and drops the old one; with foreign keys on, that drop would cascade into its children.
    connection.execute("PRAGMA foreign_keys=OFF")


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise SchemaError(f"A migration would leave {len(broken)} rows that point nowhere; nothing was changed.")


if __name__ == "__main__":
    sys.stdout.write(f"{write_revision(sys.argv[1])}\n")
