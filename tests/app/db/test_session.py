"""Transactions: waiting, giving up, undoing, and the database's clock."""

import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import select, text

import app.db.session
from app.db.session import Database
from app.errors import UnavailableError


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    yield from _with_table(database_url)


@pytest.fixture
def sqlite(sqlite_database_url: str) -> Iterator[Database]:
    yield from _with_table(sqlite_database_url)


def _with_table(url: str) -> Iterator[Database]:
    database = Database(url)
    with database.write() as session:
        session.execute(text("CREATE TABLE notes (body TEXT)"))
    yield database
    database.close()


def _write(database: Database, body: str) -> None:
    with database.write() as session:
        session.execute(text("INSERT INTO notes VALUES (:body)"), {"body": body})


def _read(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(text("SELECT body FROM notes")))


def test_a_write_is_there_for_the_next_reader(database: Database) -> None:
    _write(database, "a")
    assert _read(database) == ["a"]


def test_an_error_undoes_the_whole_write(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.execute(text("INSERT INTO notes VALUES ('a')"))
        raise ZeroDivisionError
    assert _read(database) == []


def test_the_databases_clock_is_unix_time_and_moves_within_a_transaction(database: Database) -> None:
    with database.read() as session:
        before = time.time()
        first = session.scalars(select(database.now)).one()
        time.sleep(0.05)
        second = session.scalars(select(database.now)).one()
        after = time.time()
    assert isinstance(first, float)
    rounding = 0.01
    assert before - rounding < first < second - 0.05 + rounding
    assert second < after + rounding


def test_sqlite_keeps_a_write_ahead_log_and_syncs_fully(sqlite: Database) -> None:
    with sqlite.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA synchronous")) == 2
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_sqlite_writers_wait_for_each_other_and_readers_for_nobody(sqlite: Database) -> None:
    with sqlite.write() as session:
        session.execute(text("INSERT INTO notes VALUES ('first')"))
        second = threading.Thread(target=_write, args=(sqlite, "second"))
        second.start()
        time.sleep(0.3)
        assert second.is_alive()
        assert _read(sqlite) == []
    second.join(5)
    assert _read(sqlite) == ["first", "second"]


def test_sqlite_writers_that_read_first_do_not_fail_half_way(sqlite: Database) -> None:
    # With a deferred BEGIN, two of these would both read and then refuse each other's write at once.
    def count_and_write() -> None:
        with sqlite.write() as session:
            count = session.scalar(text("SELECT count(*) FROM notes"))
            session.execute(text("INSERT INTO notes VALUES (:body)"), {"body": str(count)})

    threads = [threading.Thread(target=count_and_write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(_read(sqlite)) == list("01234567")


def test_sqlite_locked_for_too_long_is_reported_as_unavailable(
    sqlite: Database, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.db.session, "BUSY_TIMEOUT_SECONDS", 0.2)
    impatient = Database(sqlite_database_url)
    with sqlite.write() as session:
        session.execute(text("INSERT INTO notes VALUES ('before')"))
        with pytest.raises(UnavailableError) as refused:
            _write(impatient, "never")
    assert (refused.value.status, refused.value.code) == (503, "database_unavailable")
    _write(impatient, "after")
    assert _read(impatient) == ["before", "after"]
    impatient.close()


def test_postgres_that_cannot_be_reached_is_reported_as_unavailable() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(UnavailableError), database.read() as session:
        session.execute(text("SELECT 1"))
    database.close()


def test_postgres_connections_cut_while_idle_are_replaced(postgres_database_url: str) -> None:
    database, other = Database(postgres_database_url), Database(postgres_database_url)
    with database.read() as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
    with other.read() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})
    with database.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != backend
    database.close()
    other.close()
