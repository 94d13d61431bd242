"""One run, without a trainer. Whole jobs run in tests/flows and tests/faults."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.db.migrate import upgrade
from app.db.session import Database
from app.db.tables import ModelRow
from app.errors import UnavailableError
from app.jobs import repository
from app.jobs.repository import Claim, LostClaimError, status_event
from app.logs import TextFormatter, log_about
from app.retention import DAY_SECONDS, Retention
from app.settings import Settings
from app.storage import FileStore
from ml.artifact.description import encoder_name
from ml.artifact.manifest import publish_folder
from tests.app.jobs.house import House
from workers import runner
from workers.runner import _Run
from workers.spares import Spares


@pytest.fixture
def house(sqlite_database_url: str) -> Iterator[House]:
    upgrade(sqlite_database_url)
    database = Database(sqlite_database_url)
    yield House(database)
    database.close()


def _folder(path: Path, content: bytes) -> None:
    with publish_folder(path, "encoder", {}) as folder:
        (folder / "content").write_bytes(content)


def test_an_encoder_that_was_swept_before_the_job_ended_is_stored_again(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan for days, it was found there, and taken away before a row named it."""
    settings = Settings(home=tmp_path)
    store = FileStore(settings.resolved_storage_url, tmp_path / "cache")
    house.add(key_lineage="key_a")
    claim = house.must_claim()
    folder = tmp_path / "run"
    run = _Run(house.database, store, settings, Spares([], tmp_path, nice=0), {}, claim, folder)
    _folder(folder / "artifact", b"head")
    _folder(folder / "base", b"encoder")
    store.put_folder(folder / "base", key := f"bases/{encoder_name('abc')}")
    description = SimpleNamespace(shared_folder=encoder_name("abc"), metrics={}, model_dump=dict)
    monkeypatch.setattr(runner, "read_description", lambda _folder: description)
    persist = run.persist

    def sweep_then_persist(write: Callable[..., Any]) -> Any:
        sweep = Retention(house.database, store, settings, lambda: time.time() + 2 * DAY_SECONDS).sweep()
        # The artifact is young, whatever that clock says: only the encoder is old.
        assert next(sweep).name == key
        assert not store.exists(key)
        return persist(write)

    monkeypatch.setattr(run, "persist", sweep_then_persist)
    assert run.publish(house.row(claim.job_id)) is None
    with house.database.read() as session:
        (model,) = session.query(ModelRow).all()
    assert (house.row(claim.job_id).status, model.base_folder) == ("succeeded", key)
    assert model.key_lineage == "key_a"  # whose quota it counts against
    assert (store.local_path(key) / "content").read_bytes() == b"encoder"


class DatabaseThatFails:
    now = 0.0

    def __init__(self, error: Exception) -> None:
        self.error = error

    @contextmanager
    def write(self) -> Iterator[None]:
        raise self.error
        yield


class Run(_Run):
    """Waits for its lease to be lost in the place of a trainer."""

    def run_child(self, stopping: Any) -> None:
        while not self.is_lost:
            time.sleep(0.01)
        raise LostClaimError(self.claim.job_id)


@pytest.mark.parametrize(
    "error", [UnavailableError("away", code="database_unavailable"), RuntimeError("a standby, which takes no writes")]
)
def test_the_thread_that_renews_the_lease_gives_up_before_its_end_and_logs_about_the_same_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    settings: Any = Settings(home=tmp_path, lease_seconds=0.2)
    anything: Any = DatabaseThatFails(error)
    claim = Claim("job_1", 2)
    caplog.handler.setFormatter(TextFormatter())

    def run() -> None:
        log_about(job_id=claim.job_id, fence=claim.fence)
        Run(anything, anything, settings, anything, {}, claim, tmp_path).carry_out(anything)

    with caplog.at_level(logging.WARNING), pytest.raises(LostClaimError):
        copy_context().run(run)
    assert caplog.text
    assert all(" job_id=job_1 fence=2: the lease could not be renewed" in line for line in caplog.text.splitlines())


class Trainer:
    """Works until it is asked to stop, and then writes its checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.status: int | None = None
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint").write_bytes(b"x" * 2_000_000)
        (folder / "rows.parquet").symlink_to(__file__)

    def poll(self) -> int | None:
        return self.status

    def ask_to_stop(self) -> None:
        self.status = runner.STOPPED

    def kill(self) -> int:
        return self.status or 0


def test_the_time_that_a_job_was_paused_is_not_time_it_has_run(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.Layout, "lay_out", lambda *_: {})
    settings, day = Settings(home=tmp_path), 86_400.0
    store = FileStore(settings.resolved_storage_url, tmp_path / "cache")
    paused = house.add(status="paused", started_at=time.time() - 30 * day)
    story = [("claimed", 30), ("requeued", 29), ("claimed", 28), ("resumed", 28), ("paused", 26), ("resumed", 1)]
    ago = [replace(status_event(reason, reason), created_at=time.time() - days * day) for reason, days in story]
    house.run(repository.append_events, paused, ago)
    house.run(repository.queue_again, paused, now=house.now)
    run = _Run(house.database, store, settings, Spares([], tmp_path, nice=0), {}, house.must_claim(), tmp_path)
    run.prepare(house.row(paused))
    run.measured_at = -runner.MEASURE_EVERY_SECONDS
    assert not run.exceeds(time.monotonic())
    assert time.time() - run.started_at == pytest.approx(3 * day, abs=60)


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        ({"max_job_seconds": 0.3}, "time_limit", "MINIMAND_MAX_JOB_SECONDS"),
        ({"max_run_bytes": 1_000_000}, "disk_limit", "2,000,000 bytes of disk"),
    ],
)
def test_a_job_that_takes_more_than_one_may_is_asked_to_stop_and_fails(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], code: str, said: str
) -> None:
    monkeypatch.setattr(runner, "MEASURE_EVERY_SECONDS", 0.1)
    settings = Settings(home=tmp_path, **limits)
    store = FileStore(settings.resolved_storage_url, tmp_path / "cache")
    house.add()
    claim, folder = house.must_claim(), tmp_path / "run"
    trainer = Trainer(folder)
    spares: Any = SimpleNamespace(start_trainer=lambda *_: trainer, refill=lambda *_: None)
    run = _Run(house.database, store, settings, spares, {}, claim, folder)
    monkeypatch.setattr(run, "prepare", lambda _job: None)
    assert run.run_child(threading.Event()) is None
    row = house.row(claim.job_id)
    assert (row.status, trainer.status) == ("failed", runner.STOPPED)
    assert row.error is not None
    assert row.error["code"] == code
    assert said in row.error["message"]
