"""Slots: when they look for work, and when they let go. The runner is a fake: what it does has tests of its own."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.db.migrate import upgrade
from app.db.session import Database
from app.errors import UnavailableError
from app.jobs import repository
from app.jobs.repository import Claim, Released, Why
from app.logs import TextFormatter
from app.settings import Settings
from tests.app.jobs.test_repository import House
from tests.service import wait_until
from workers.devices import SHORT_SLOT, Slot, plan_slots
from workers.slots import Slots

CPU = Slot("cpu", ("cpu",), {"CUDA_VISIBLE_DEVICES": ""})
SOON_SECONDS = 20  # nothing else would happen for minutes, so a busy machine may take its time


@dataclass
class FakeRunner:
    """Ends each job at once, or does what it is told to do with it."""

    database: Database
    act: Callable[["FakeRunner", Claim, threading.Event], Released | None] | None = None
    runs: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def run(self, claim: Claim, environment: Mapping[str, str], stopping: threading.Event) -> Released | None:
        self.runs.append((claim.job_id, dict(environment)))
        if self.act is not None:
            return self.act(self, claim, stopping)
        return self.end(claim)

    def end(self, claim: Claim) -> None:
        with self.database.write() as session:
            repository.finish(session, claim, status="succeeded", now=self.database.now)

    def release(self, claim: Claim) -> Released | None:
        with self.database.write() as session:
            return repository.release(
                session, claim, charge=False, cap=3, why=Why("worker_stopped", "asked to"), now=self.database.now
            )


@dataclass
class FakeQueue:
    """Notes whom it would wake."""

    woken: list[str] = field(default_factory=list)

    def wake(self, queue: str) -> None:
        self.woken.append(queue)


@dataclass
class FakeSpares:
    """Notes how many jobs had been run when it was time to look after spares."""

    runner: FakeRunner
    mended_after: list[int] = field(default_factory=list)

    def mend(self) -> None:
        self.mended_after.append(len(self.runner.runs))


class Worker:
    """Slots over a real database."""

    def __init__(self, house: House, plan: list[Slot], poll_seconds: float, act: Any) -> None:
        self.runner, self.queue = FakeRunner(house.database, act), FakeQueue()
        self.spares = FakeSpares(self.runner)
        settings = Settings(poll_seconds=poll_seconds, lease_seconds=60)
        self.slots = Slots(plan, house.database, self.runner, self.queue, settings, self.spares)  # type: ignore[arg-type]
        self.slots.start()

    def wait_for(self, *jobs: str, within_seconds: float = SOON_SECONDS) -> None:
        wait_until(lambda: [job for job, _ in self.runner.runs] == list(jobs), within_seconds, lambda: str(self.runner))

    def stop(self) -> float:
        """Stop, and say how long that took."""
        started = time.monotonic()
        self.slots.stop()
        self.slots.join()
        return time.monotonic() - started


Start = Callable[..., Worker]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    url = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    upgrade(url)
    database = Database(url)
    yield House(database)
    database.close()


@pytest.fixture
def start(house: House) -> Iterator[Start]:
    workers: list[Worker] = []

    def start_worker(plan: list[Slot] | None = None, *, poll_seconds: float = 600, act: Any = None) -> Worker:
        workers.append(Worker(house, plan or [CPU], poll_seconds, act))
        return workers[-1]

    yield start_worker
    for worker in workers:
        worker.stop()


def _wait_until_idle(worker: Worker) -> None:
    # A slot that found nothing waits on the condition; its thread is then the only waiter.
    wait_until(lambda: len(worker.slots._rung._waiters) == len(worker.slots.names), SOON_SECONDS)  # type: ignore[attr-defined]


def test_jobs_that_wait_are_run_in_order_without_a_ring(house: House, start: Start) -> None:
    jobs = [house.add() for _ in range(3)]
    start().wait_for(*jobs)
    wait_until(lambda: {house.row(job).status for job in jobs} == {"succeeded"}, SOON_SECONDS)  # the last ends yet


def test_spares_are_looked_after_by_idle_slots_alone(house: House, start: Start) -> None:
    for _ in range(3):
        house.add()
    worker = start(poll_seconds=0.1)
    wait_until(lambda: len(worker.spares.mended_after) > 1, SOON_SECONDS)
    assert set(worker.spares.mended_after) == {3}


def test_a_ring_wakes_an_idle_slot_at_once(house: House, start: Start) -> None:
    worker = start()
    _wait_until_idle(worker)
    job = house.add()
    time.sleep(0.2)
    assert worker.runner.runs == []
    worker.slots.ring()
    worker.wait_for(job)


def test_a_lost_ring_costs_one_poll(house: House, start: Start) -> None:
    worker = start(poll_seconds=0.3)
    _wait_until_idle(worker)
    worker.wait_for(house.add())


def test_rings_without_work_are_no_work(house: House, start: Start) -> None:
    worker = start()
    for _ in range(50):
        worker.slots.ring()
    _wait_until_idle(worker)
    assert worker.runner.runs == []


def test_one_ring_wakes_every_slot_and_each_runs_a_job_on_its_own_device(house: House, start: Start) -> None:
    together = threading.Barrier(2)

    def meet(runner: FakeRunner, claim: Claim, _stopping: threading.Event) -> None:
        together.wait(SOON_SECONDS)
        runner.end(claim)

    plan = [Slot(f"gpu-{n}", ("gpu", "cpu"), {"CUDA_VISIBLE_DEVICES": str(n)}) for n in range(2)]
    worker = start(plan, act=meet)
    _wait_until_idle(worker)
    jobs = [house.add(), house.add(queue="gpu")]
    worker.slots.ring()
    wait_until(lambda: len(worker.runner.runs) == 2, SOON_SECONDS)
    assert sorted(job for job, _ in worker.runner.runs) == jobs
    assert sorted(given["CUDA_VISIBLE_DEVICES"] for _, given in worker.runner.runs) == ["0", "1"]
    assert worker.slots.names == ["gpu-0", "gpu-1"]
    assert worker.slots.queues == ["cpu", "gpu"]


def test_short_work_has_a_slot_of_its_own_which_trainings_cannot_fill(house: House, start: Start) -> None:
    let_go = threading.Event()

    def hold_trainings(runner: FakeRunner, claim: Claim, _stopping: threading.Event) -> None:
        if claim.job_id in trainings:
            let_go.wait(SOON_SECONDS)
        runner.end(claim)

    trainings = [house.add(), house.add()]
    # A training that went to the short queue by mistake, and short work on the queue of trainings, are left alone.
    strays = [house.add(queue="short"), house.add(kind="dry_run")]
    dry_runs = [house.add(kind="dry_run", queue="short") for _ in range(2)]
    worker = start([*plan_slots("cpu", list_gpus=list), SHORT_SLOT], act=hold_trainings)
    assert worker.slots.names == ["cpu", "short"]
    assert worker.slots.queues == ["cpu", "short"]
    wait_until(lambda: {house.row(job).status for job in dry_runs} == {"succeeded"}, SOON_SECONDS)
    assert house.row(trainings[1]).status == "queued"
    let_go.set()
    wait_until(lambda: {house.row(job).status for job in trainings} == {"succeeded"}, SOON_SECONDS)
    assert {house.row(job).status for job in strays} == {"queued"}
    assert {given["CUDA_VISIBLE_DEVICES"] for _, given in worker.runner.runs} == {""}


def test_the_owner_of_a_claim_is_this_host_process_and_slot(house: House, start: Start) -> None:
    seen: list[str | None] = []

    def look(runner: FakeRunner, claim: Claim, _stopping: threading.Event) -> None:
        seen.append(house.row(claim.job_id).owner)
        runner.end(claim)

    job = house.add()
    worker = start(act=look)
    worker.wait_for(job)
    wait_until(lambda: seen, SOON_SECONDS)
    assert seen == [f"{worker.slots.host}:{os.getpid()}:cpu"]


def test_what_is_logged_in_a_jobs_turn_is_about_that_claim(
    house: House, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(TextFormatter())
    caplog.set_level(logging.INFO)
    jobs = [house.add(), house.add()]
    start().wait_for(*jobs)
    assert [line.partition("workers.slots ")[2] for line in caplog.text.splitlines() if "claimed" in line] == [
        f"job_id={job} fence=1: claimed by cpu" for job in jobs
    ]


def test_an_idle_worker_stops_at_once(start: Start) -> None:
    worker = start()
    _wait_until_idle(worker)
    assert worker.stop() < SOON_SECONDS


def test_a_stopping_worker_tells_its_runner_and_claims_no_more(house: House, start: Start) -> None:
    def wait_for_the_end(runner: FakeRunner, claim: Claim, stopping: threading.Event) -> Released | None:
        assert stopping.wait(SOON_SECONDS)
        return runner.release(claim)

    worker = start(act=wait_for_the_end)
    job = house.add()
    worker.slots.ring()
    worker.wait_for(job)
    assert worker.stop() < SOON_SECONDS
    assert house.row(job).status == "queued"
    assert len(worker.runner.runs) == 1
    # Others are told, so that the job need not wait for their next look.
    assert worker.queue.woken == ["cpu"]


@pytest.mark.parametrize(
    "fault", [RuntimeError("a fault of ours"), UnavailableError("away", code="database_unavailable")]
)
def test_one_jobs_fault_does_not_end_the_slot(house: House, start: Start, fault: Exception) -> None:
    bad = house.add()

    def fail_once(runner: FakeRunner, claim: Claim, _stopping: threading.Event) -> None:
        if claim.job_id == bad:
            raise fault
        runner.end(claim)

    good = house.add()
    worker = start(act=fail_once)
    worker.wait_for(bad, good)
    # Nothing was written of the bad one: its lease runs out, and the reconciler finds it.
    assert (house.row(bad).status, house.row(bad).attempts) == ("running", 0)


def test_a_starting_worker_takes_back_the_jobs_of_dead_workers_of_this_host(house: House, start: Start) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    worker = Worker(house, [], 600, None)
    here = worker.slots.host
    owners = {
        "dead": f"{here}:{ended.pid}:cpu",
        "former process of our number": f"{here}:{os.getpid()}:cpu",
        "alive": f"{here}:{os.getppid()}:cpu",
        "elsewhere": f"not-{here}:{ended.pid}:cpu",
    }
    jobs = {}
    for name, owner in owners.items():
        jobs[name] = house.add()
        house.now = time.time()
        assert house.claim(owner=owner) is not None
    worker.slots.take_back()
    assert {one.job_id for one in house.reconcile()} == {jobs["dead"], jobs["former process of our number"]}
    assert {house.row(jobs[name]).status for name in ("alive", "elsewhere")} == {"running"}
