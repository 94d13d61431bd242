"""Connections: what differs between SQLite and PostgreSQL, and the two kinds of transaction.

It knows no table. A reading transaction never blocks a writer; a writing one takes SQLite's write lock at its start,
so that two writers queue for it instead of failing half-way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Double, Engine, create_engine, event, func, literal_column
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from app.errors import InvalidInputError, UnavailableError

BUSY_TIMEOUT_SECONDS = 5
# A connection whose other end vanished must fail before a lease runs out, not when the kernel gives up.
_POSTGRES_LIMITS = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# What SQLite says of a fault that passes. Its other operational errors (a missing table) are ours.
_SQLITE_PASSING = ("locked", "busy", "unable to open database file", "disk I/O error", "full")


class Database:
    """One engine, and the transactions run over it."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, hide_parameters=True)
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            self.engine = create_engine(
                parsed,
                pool_pre_ping=True,
                pool_size=10,
                max_overflow=20,
                connect_args=_POSTGRES_LIMITS,
                hide_parameters=True,
            )
        self._writing = self.engine.execution_options(minimand_write=True)
        # In SQLite every transaction sees one moment; in PostgreSQL, by default, each statement sees its own.
        level = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._snapshot = self.engine.execution_options(**level)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        yield from self._transaction(self.engine)

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that only reads, and sees the database as it was at its first look."""
        yield from self._transaction(self._snapshot)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes; it is committed when the block ends without an error."""
        yield from self._transaction(self._writing)

    @property
    def now(self) -> ColumnElement[float]:
        """The database's clock in unix seconds: leases are never compared with a worker's own clock."""
        if self.is_sqlite:
            return literal_column("(julianday('now') - 2440587.5) * 86400.0", Double())
        # now() would be the start of the transaction.
        return func.extract("epoch", func.clock_timestamp()).cast(Double())

    def _transaction(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                session.connection()  # begin now, not at the first statement
                yield session
        except DataError as error:
            if "NUL" not in str(error.orig):
                raise
            raise InvalidInputError(
                "A text holds the character U+0000, which PostgreSQL cannot hold. Leave it out.",
                code="invalid_character",
            ) from error
        except (OperationalError, PoolTimeoutError) as error:
            if (
                self.is_sqlite
                and isinstance(error, OperationalError)
                and not any(word in str(error.orig) for word in _SQLITE_PASSING)
            ):
                raise
            raise UnavailableError(
                "The database is busy or unreachable. Nothing was changed; repeat the request.",
                code="database_unavailable",
                retry_after=2,
            ) from error

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("minimand_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
