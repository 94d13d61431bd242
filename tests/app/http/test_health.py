"""/readyz names the part that is unwell, and refuses only where requests would fail."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.db.tables import WorkerRow
from app.http import health
from app.jobs.reconciler import ABSENT_AFTER_ROUNDS, Presence, Reconciler
from tests.service import AppHouse

POLL_SECONDS = 10.0
WELL = {"database": "ok", "storage": "ok", "broker": "none", "worker": "ok", "models": "ok", "disk": "ok"}


class House(AppHouse):
    def reconciler(self, *queues: str, owner: str = "host:1") -> Reconciler:
        """Of a worker that claims from these queues; of an API where there are none."""
        presence = Presence(owner, queues) if queues else None
        return Reconciler(self.database, self.services.queue, self.settings, presence)

    def ready(self) -> tuple[int, str, dict[str, Any]]:
        reply = self.client.get("/readyz")
        return reply.status_code, reply.json()["status"], reply.json()["parts"]

    def owners(self) -> set[str]:
        with self.database.read() as session:
            return {row.owner for row in session.query(WorkerRow)}

    def let_pass(self, seconds: float) -> None:
        """For the workers, so much time goes by."""
        with self.database.write() as session:
            session.execute(update(WorkerRow).values(seen_at=WorkerRow.seen_at - seconds))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "home", poll_seconds=POLL_SECONDS, min_free_bytes=0)
    yield house
    house.close()


def test_with_a_worker_all_is_well(house: House) -> None:
    house.reconciler("cpu", "short").run_once()
    assert house.ready() == (200, "ok", WELL)


def test_without_a_worker_for_new_trainings_it_is_degraded(house: House) -> None:
    expected = (200, "degraded", {**WELL, "worker": "none"})
    assert house.ready() == expected
    house.reconciler("gpu", "short").run_once()
    assert house.ready() == expected


def test_a_worker_that_was_not_seen_for_three_rounds_is_none_and_is_struck_by_any_process(house: House) -> None:
    worker, api = house.reconciler("cpu"), house.reconciler()
    worker.run_once()
    house.let_pass((ABSENT_AFTER_ROUNDS - 0.5) * POLL_SECONDS)
    api.run_once()
    assert house.ready()[2]["worker"] == "ok"
    house.let_pass(POLL_SECONDS)
    assert house.ready()[2]["worker"] == "none"
    api.run_once()
    assert house.owners() == set()
    worker.run_once()
    assert house.ready()[2]["worker"] == "ok"


def test_a_worker_that_stops_says_so(house: House) -> None:
    for owner in ("host:1", "host:2"):
        house.reconciler("cpu", owner=owner).run_once()
    worker = house.reconciler("cpu")
    worker.start()
    worker.stop()
    assert house.owners() == {"host:2"}


def test_a_store_that_takes_no_file_makes_it_unwell(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    house = House(tmp_path / "home", storage_url=str(blocked), min_free_bytes=0)
    status, word, parts = house.ready()
    assert (status, word, parts["storage"], parts["database"]) == (503, "unwell", "unreachable", "ok")
    house.close()


def test_little_space_on_the_disk_of_the_home_is_low(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.reconciler("cpu").run_once()
    monkeypatch.setattr(health, "_free_bytes", lambda _folder: -1)
    assert house.ready() == (200, "degraded", {**WELL, "disk": "low"})


def test_a_folder_that_is_not_there_yet_has_its_disks_space(tmp_path: Path) -> None:
    assert health._free_bytes(tmp_path / "not" / "yet") > 0


def test_a_store_that_hangs_holds_up_nobody_for_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def hang(*_: object) -> None:
        looks.append(time.monotonic())
        time.sleep(0.5)

    monkeypatch.setattr("app.storage.PROBE_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(house.services.store, "_write_probe", hang)
    for _ in range(3):
        assert house.ready()[2]["storage"] == "unreachable"
    assert len(looks) == 1


def test_strangers_who_ask_while_a_part_hangs_take_no_threads_from_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers, looks, hangs = 60, [], threading.Event()  # more than the threads that routes run in

    def hang() -> str:
        looks.append(time.monotonic())
        hangs.wait(20)
        return "unreachable"

    monkeypatch.setattr(house.services.queue, "health", hang)
    with house.client as client, ThreadPoolExecutor(strangers + 1) as asking:  # one event loop for all calls
        replies = [asking.submit(client.get, "/readyz") for _ in range(strangers)]
        try:
            assert asking.submit(client.get, "/v1/jobs").result(timeout=10).status_code == 200
        finally:
            hangs.set()
        assert {reply.result().json()["parts"]["broker"] for reply in replies} == {"unreachable"}
    assert len(looks) < strangers / 2
