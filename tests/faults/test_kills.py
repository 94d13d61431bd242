"""Kill things while they work: nothing is lost, nothing is done twice, nothing is left running.

All jobs here are the same work, so all their models must be the same bits, however often they were interrupted.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.broker import EmbeddedBroker
from app.queue import JobQueue
from app.supervisor import PARENT_PID_VARIABLE
from tests.conftest import wait_for_valkey, wait_until_gone
from tests.service import (
    LEASE_SECONDS,
    Program,
    RunningService,
    all_items,
    events_of,
    reasons_of,
    running,
    slow_spec,
    submit,
    tickets,
    upload,
    wait_until,
)

ROWS = tickets(160)
# Those that the kernel tells of a fault end by this time, on a busy machine too. Nobody else would ever end them.
AT_ONCE_SECONDS = 10


@dataclass
class Site:
    """An installation with a running API, and no worker but those a test starts."""

    service: RunningService
    client: httpx.Client
    dataset: str
    weights: str  # of the work done in one go

    def submit(self) -> str:
        return submit(self.client, slow_spec(self.dataset))

    def wait_until_under_way(self, job: str) -> tuple[int, int]:
        """The pid of the job's trainer, and the step of a checkpoint that is stored."""
        pid = self.service.wait_for_trainer()
        return pid, self.service.wait_for_checkpoint(self.client, job)

    def require_whole(self, job_id: str, *, interruptions: int) -> list[dict[str, Any]]:
        """Wait until the job has succeeded as if nothing had happened, and return its events."""
        job = self.service.wait_for_job(self.client, job_id, ["succeeded"])
        assert job["attempts"] == 0
        assert job["progress"]["step"] == job["progress"]["steps"] == 400
        mine = [model for model in all_items(self.client, "/v1/models") if model["job_id"] == job_id]
        assert [model["id"] for model in mine] == [job["model_id"]]
        assert _weights(self.service, job_id) == self.weights

        events = events_of(self.client, job_id)
        again = ["requeued", "claimed", "resumed"]
        assert reasons_of(events) == ["queued", "claimed", *again * interruptions, "succeeded"]
        _require_no_step_twice(events)
        wait_until(lambda: not self.service.run_directories(), 30)
        assert self.service.temporary_files() == []
        stored = (self.service.home / "files" / "jobs" / job_id).glob("*/checkpoints/*")
        kept = all_items(self.client, f"/v1/jobs/{job_id}/checkpoints")
        assert {path.name for path in stored} == {checkpoint["id"] for checkpoint in kept}
        return events


def _require_no_step_twice(events: list[dict[str, Any]]) -> None:
    """After a resume from step N, no step up to N is made again; N is a step whose checkpoint was stored."""
    resumed_from, stored = 0, set()
    for event in events:
        if event["type"] == "checkpoint":
            stored.add(event["data"]["step"])
            assert event["data"]["checkpoint_id"].startswith("ckpt_")
        elif event["type"] == "metrics":
            assert event["data"]["step"] > resumed_from
        elif event["data"].get("reason") == "resumed":
            resumed_from = event["data"]["step"]
            assert resumed_from == max(stored)
            assert event["message"] == f"resumed from step {resumed_from}"
            assert event["data"]["checkpoint_id"].startswith("ckpt_")


def _weights(service: RunningService, job_id: str) -> str:
    """The digest of the weights in a finished job's artifact."""
    (manifest,) = (service.home / "files" / "jobs" / job_id).glob("*/artifact/manifest.json")
    digest: str = json.loads(manifest.read_text())["files"]["model.safetensors"]["sha256"]
    return digest


@dataclass
class Uninterrupted:
    """The same work done in one go, though two workers were woken fifty times for it."""

    reasons: list[str]
    statuses: list[int]
    weights: str


@pytest.fixture(scope="module")
def lasting_service(tmp_path_factory: pytest.TempPathFactory, valkey_server: str) -> Iterator[RunningService]:
    with running(tmp_path_factory.mktemp("site") / "home", broker_url=valkey_server) as service:
        service.start_api()
        yield service


@pytest.fixture(scope="module")
def dataset(lasting_service: RunningService) -> str:
    with lasting_service.client() as client:
        return upload(client, ROWS)


@pytest.fixture(scope="module")
def uninterrupted(lasting_service: RunningService, dataset: str, valkey_server: str) -> Uninterrupted:
    workers = [lasting_service.start_worker() for _ in range(2)]
    with lasting_service.client() as client:
        job = submit(client, slow_spec(dataset, checkpoint_every_seconds=86_400))
        queue = JobQueue(valkey_server)
        for _ in range(50):
            queue.wake("cpu")
        lasting_service.wait_for_job(client, job, ["succeeded"])
        reasons = reasons_of(events_of(client, job))
    return Uninterrupted(reasons, [worker.stop() for worker in workers], _weights(lasting_service, job))


@pytest.fixture
def site(lasting_service: RunningService, dataset: str, uninterrupted: Uninterrupted) -> Iterator[Site]:
    """The lasting service; a test's workers end with the test."""
    before = len(lasting_service.programs)
    with lasting_service.client() as client:
        yield Site(lasting_service, client, dataset, uninterrupted.weights)
        for job in all_items(client, "/v1/jobs", status="queued") + all_items(client, "/v1/jobs", status="running"):
            client.post(f"/v1/jobs/{job['id']}/cancel")  # of a test that failed: the next one must not run it
    for program in lasting_service.programs[before:]:
        program.stop()
    assert lasting_service.trainers() == set()


def test_fifty_wake_ups_to_two_workers_claim_one_job_once(uninterrupted: Uninterrupted) -> None:
    assert uninterrupted.reasons == ["queued", "claimed", "succeeded"]
    assert uninterrupted.statuses == [0, 0]


def test_a_killed_trainer_is_started_again_from_its_newest_checkpoint(site: Site) -> None:
    site.service.start_worker()
    job = site.submit()
    pid, step = site.wait_until_under_way(job)
    os.kill(pid, signal.SIGKILL)
    events = site.require_whole(job, interruptions=1)
    (requeued,) = [event for event in events if event["data"].get("reason") == "requeued"]
    assert (requeued["data"]["cause"], "SIGKILL" in requeued["message"]) == ("trainer_died", True)
    (resumed,) = [event for event in events if event["data"].get("reason") == "resumed"]
    assert resumed["data"]["step"] >= step


def test_a_killed_workers_trainer_dies_with_it_and_another_worker_takes_over(site: Site) -> None:
    first = site.service.start_worker()
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    second = site.service.start_worker()
    first.kill()
    killed_at = time.time()
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    events = site.require_whole(job, interruptions=1)
    claims = [event for event in events if event["data"].get("reason") == "claimed"]
    assert [event["data"]["fence"] for event in claims] == [1, 2]
    assert [f":{worker.pid}:" in claim["message"] for worker, claim in zip((first, second), claims, strict=True)] == [
        True,
        True,
    ]
    # Not before the dead worker's lease ran out. A lease is renewed every quarter of it.
    assert claims[1]["created_at"] - killed_at > 0.5 * LEASE_SECONDS


def test_a_spare_takes_the_next_job_and_is_replaced_when_that_is_trained(site: Site) -> None:
    site.service.start_worker(spare_trainers=True)
    spare = site.service.wait_for_spare()
    job = submit(site.client, slow_spec(site.dataset, max_steps=100))
    assert site.service.wait_for_trainer() == spare
    assert site.service.trainers() == {spare}, "a job that has just begun has the processor to itself"
    site.service.wait_for_job(site.client, job, ["succeeded"])
    assert site.service.wait_for_spare() != spare


def test_a_spare_that_is_killed_costs_no_job_an_attempt(site: Site) -> None:
    site.service.start_worker(spare_trainers=True)
    spare = site.service.wait_for_spare()
    os.kill(spare, signal.SIGKILL)
    wait_until_gone({spare}, timeout_seconds=AT_ONCE_SECONDS)
    job = submit(site.client, slow_spec(site.dataset, max_steps=20))
    assert site.service.wait_for_job(site.client, job, ["succeeded"])["attempts"] == 0
    assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "succeeded"]


@pytest.mark.parametrize("end", [Program.kill, Program.stop])
def test_a_workers_spare_ends_with_it(site: Site, end: Callable[[Program], object]) -> None:
    worker = site.service.start_worker(spare_trainers=True)
    spare = site.service.wait_for_spare()
    end(worker)
    wait_until_gone({spare}, timeout_seconds=AT_ONCE_SECONDS)
    assert site.service.trainers() == set()


def test_a_worker_that_is_asked_to_stop_hands_its_job_back_at_once(site: Site) -> None:
    first = site.service.start_worker()
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    assert first.stop() == 0
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    assert site.client.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    newest = site.service.wait_for_checkpoint(site.client, job)
    last_step = max(event["data"]["step"] for event in events_of(site.client, job) if event["type"] == "metrics")
    site.service.start_worker()
    events = site.require_whole(job, interruptions=1)
    (requeued, resumed) = [event for event in events if event["data"].get("reason") in ("requeued", "resumed")]
    # By the worker itself, not by the reconciler once its lease had run out.
    assert requeued["data"]["cause"] == "worker_stopped"
    # The trainer wrote a checkpoint of where it was when it was asked, so not a step is made again.
    assert resumed["data"]["step"] == newest >= last_step


def test_a_running_job_is_cancelled_and_its_trainer_ends(site: Site) -> None:
    site.service.start_worker()
    job = site.submit()
    pid = site.service.wait_for_trainer()
    assert site.client.post(f"/v1/jobs/{job}/cancel").json()["status"] in ("cancelling", "cancelled")
    ended = site.service.wait_for_job(site.client, job, ["cancelled"])
    assert (ended["model_id"], ended["error"], ended["attempts"]) == (None, None, 0)
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    assert site.service.run_directories() == []


def test_with_the_broker_killed_jobs_are_accepted_and_run_by_polling(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker-home")
    broker.prepare()
    process = _start_broker(broker)
    with running(tmp_path / "home", broker_url=broker.url) as service:
        service.start_api()
        service.start_worker()
        with service.client() as client:
            dataset = upload(client, ROWS)
            process.kill()
            process.wait()
            job, unwanted = (submit(client, slow_spec(dataset, max_steps=20)) for _ in range(2))
            assert client.post(f"/v1/jobs/{unwanted}/cancel").json()["status"] == "cancelled"
            ready = client.get("/readyz").json()
            assert (ready["status"], ready["parts"]["broker"]) == ("degraded", "unreachable")
            assert {ready["parts"][name] for name in ("database", "storage", "worker")} == {"ok"}
            service.wait_for_job(client, job, ["succeeded"])
            assert reasons_of(events_of(client, job)) == ["queued", "claimed", "succeeded"]


_DOORBELL = """
import os, sys
from workers.celery_app import make_worker_app, serve
say = lambda word: os.write(1, word + b"\\n")  # not print: Celery takes that over
serve(make_worker_app(sys.argv[1], lambda: say(b"ring"), lambda: say(b"stop")), ["cpu"])
"""


def test_a_worker_hears_again_once_the_broker_is_back(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "broker-home")
    broker.prepare()
    process = _start_broker(broker)
    heard = tmp_path / "heard"
    queue = JobQueue(broker.url)
    with heard.open("wb") as output:
        command = [sys.executable, "-c", _DOORBELL, broker.url]
        listener = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)

    def is_heard() -> bool:
        before = heard.read_text().count("ring")
        queue.wake("cpu")
        time.sleep(0.3)
        return heard.read_text().count("ring") > before

    try:
        wait_until(is_heard, 60)
        process.kill()
        process.wait()
        queue.wake("cpu")
        broker.prepare()
        process = _start_broker(broker)
        wait_until(is_heard, 60)
        listener.terminate()
        listener.wait(30)
        assert "stop" in heard.read_text().splitlines()  # a late ring may follow it
    finally:
        for one in (listener, process):
            one.kill()
            one.wait()


def _start_broker(broker: EmbeddedBroker) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(broker.command(), env={**os.environ, PARENT_PID_VARIABLE: str(os.getpid())})
    wait_for_valkey(broker.url)
    return process


def test_a_killed_installation_leaves_nothing_running_and_its_next_start_finishes_the_job(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    with running(tmp_path / "home") as service:
        up = service.start_up()
        with service.client() as client:
            site = Site(service, client, upload(client, ROWS), uninterrupted.weights)
            job = site.submit()
            site.wait_until_under_way(job)
        everyone = service.processes()
        assert len(everyone) >= 5, "the supervisor, the broker, the API, the worker and the trainer"
        up.kill()
        wait_until_gone(everyone, timeout_seconds=AT_ONCE_SECONDS)

        again = service.start_up()
        with service.client() as client:
            Site(service, client, site.dataset, site.weights).require_whole(job, interruptions=1)
        assert again.stop() == 0
        wait_until_gone(service.processes(), timeout_seconds=AT_ONCE_SECONDS)
