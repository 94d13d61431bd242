"""Kill things while they work: nothing is lost, nothing is done twice, nothing is left running."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from app.queue import JobQueue
from tests.conftest import wait_until_gone
from tests.faults.conftest import Houses
from tests.faults.site import ROWS, WORK, Record, Site
from tests.service import (
    ENDED,
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    Program,
    events_of,
    reasons_of,
    running,
    slow_spec,
    submit,
    upload,
    wait_until,
)

# Those that the kernel tells of a fault end by this time, on a busy machine too. Nobody else would ever end them.
AT_ONCE_SECONDS = 10


@pytest.mark.proof
@pytest.mark.row("the wake-up 50 times to two workers, one queued job", runs=3)
def test_fifty_wake_ups_to_two_workers_claim_one_job_once(site: Site, valkey_server: str) -> None:
    workers = [site.service.start_worker() for _ in range(2)]
    job = site.submit(checkpoint_every_seconds=86_400)
    queue = JobQueue(valkey_server)
    for _ in range(50):
        queue.wake("cpu")
    site.settle()
    assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "succeeded"]
    assert [worker.stop() for worker in workers] == [0, 0]


@pytest.mark.row("kill -9 the trainer", runs=4)
def test_a_killed_trainer_is_started_again_from_its_newest_checkpoint(site: Site) -> None:
    site.service.start_worker()
    job = site.submit()
    pid, step = site.wait_until_under_way(job)
    site.strike(lambda: os.kill(pid, signal.SIGKILL))
    site.settle()
    events = events_of(site.client, job)
    assert reasons_of(events) == ["queued", "claimed", "requeued", "claimed", "resumed", "succeeded"]
    (requeued,) = [event for event in events if event["data"].get("reason") == "requeued"]
    assert (requeued["data"]["cause"], "SIGKILL" in requeued["message"]) == ("trainer_died", True)
    (resumed,) = [event for event in events if event["data"].get("reason") == "resumed"]
    assert resumed["data"]["step"] >= step
    assert resumed["message"] == f"resumed from step {resumed['data']['step']}"
    assert resumed["data"]["checkpoint_id"].startswith("ckpt_")


@pytest.mark.proof
@pytest.mark.timeout(1200)
@pytest.mark.row("kill -9 the trainer after each new checkpoint, 20 times", runs=2)
@pytest.mark.parametrize("work", WORK)
def test_a_trainer_that_is_killed_after_every_checkpoint_comes_to_the_same_bits(site: Site, work: str) -> None:
    site.service.start_worker(spare_trainers=True)
    job = site.submit(work, checkpoint_every_seconds=0.1)
    step = kills = 0

    def is_further() -> bool:
        nonlocal step
        now = site.client.get(f"/v1/jobs/{job}").json()
        checkpoints = site.client.get(f"/v1/jobs/{job}/checkpoints").json()["data"]
        newest = max((one["step"] for one in checkpoints), default=0)
        is_new, step = newest > step, max(newest, step)
        return is_new or now["status"] in ENDED

    while kills < 20:
        wait_until(is_further, PATIENCE_SECONDS, site.service.log_of_all)
        if site.client.get(f"/v1/jobs/{job}").json()["status"] in ENDED:
            break
        for pid in site.service.trainers_at_work():
            site.strike(lambda pid=pid: os.kill(pid, signal.SIGKILL))  # type: ignore[misc]
            wait_until_gone({pid}, AT_ONCE_SECONDS)
            kills += 1
    site.settle()
    assert kills >= 5, "the job was over too soon to prove much"


@pytest.mark.row("kill -9 the worker", runs=4)
def test_a_killed_workers_trainer_dies_with_it_and_another_worker_takes_over(site: Site) -> None:
    first = site.service.start_worker()
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    second = site.service.start_worker()
    site.strike(first.kill)
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    site.settle()
    claims = [event for event in events_of(site.client, job) if event["data"].get("reason") == "claimed"]
    assert [event["data"]["fence"] for event in claims] == [1, 2]
    for worker, claim in zip((first, second), claims, strict=True):
        assert f":{worker.pid}:" in claim["message"]
    # Not before the dead worker's lease ran out. A lease is renewed every quarter of it.
    assert claims[1]["created_at"] - site.faults[0] > 0.5 * LEASE_SECONDS


@pytest.mark.proof
@pytest.mark.row("a spare trainer takes a job")
def test_a_spare_takes_the_next_job_and_is_replaced_when_that_is_trained(site: Site) -> None:
    site.service.start_worker(spare_trainers=True)
    spare = site.service.wait_for_spare()
    job = submit(site.client, slow_spec(site.dataset, max_steps=100))
    assert site.service.wait_for_trainer() == spare
    assert site.service.trainers() == {spare}, "a job that has just begun has the processor to itself"
    site.service.wait_for_job(site.client, job, ["succeeded"])
    assert site.service.wait_for_spare() != spare


@pytest.mark.proof
@pytest.mark.row("kill -9 a spare trainer", runs=3)
def test_a_spare_that_is_killed_costs_no_job_an_attempt(site: Site) -> None:
    site.service.start_worker(spare_trainers=True)
    spare = site.service.wait_for_spare()
    os.kill(spare, signal.SIGKILL)
    wait_until_gone({spare}, timeout_seconds=AT_ONCE_SECONDS)
    job = submit(site.client, slow_spec(site.dataset, max_steps=20))
    assert site.service.wait_for_job(site.client, job, ["succeeded"])["attempts"] == 0
    assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "succeeded"]


@pytest.mark.proof
@pytest.mark.row("a worker ends, its spare with it", runs=3)
@pytest.mark.parametrize("end", [Program.kill, Program.stop])
def test_a_workers_spare_ends_with_it(site: Site, end: Callable[[Program], object]) -> None:
    worker = site.service.start_worker(spare_trainers=True)
    spare = site.service.wait_for_spare()
    end(worker)
    wait_until_gone({spare}, timeout_seconds=AT_ONCE_SECONDS)
    assert site.service.trainers() == set()


@pytest.mark.proof
@pytest.mark.row("SIGTERM to the worker in mid-epoch", runs=4)
def test_a_worker_that_is_asked_to_stop_hands_its_job_back_at_once(site: Site) -> None:
    first = site.service.start_worker()
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    site.strike(lambda: None)
    assert first.stop() == 0
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    assert site.client.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    newest = site.service.wait_for_checkpoint(site.client, job)
    last_step = max(event["data"]["step"] for event in events_of(site.client, job) if event["type"] == "metrics")
    site.service.start_worker()
    site.settle()
    events = events_of(site.client, job)
    (requeued, resumed) = [event for event in events if event["data"].get("reason") in ("requeued", "resumed")]
    # By the worker itself, not by the reconciler once its lease had run out.
    assert requeued["data"]["cause"] == "worker_stopped"
    # The trainer wrote a checkpoint of where it was when it was asked, so not a step is made again.
    assert resumed["data"]["step"] == newest >= last_step
    assert site.record.repeated_steps == 0


@pytest.mark.proof
@pytest.mark.row("pause a running job, then resume it", runs=3)
def test_a_running_job_is_paused_and_goes_on_without_a_step_twice(site: Site) -> None:
    site.service.start_worker()
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    assert site.client.post(f"/v1/jobs/{job}/pause").json()["status"] in ("pausing", "paused")
    site.service.wait_for_job(site.client, job, ["paused"])
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    assert site.client.post(f"/v1/jobs/{job}/resume").json()["status"] == "queued"
    site.settle()
    assert site.record.repeated_steps == 0


@pytest.mark.proof
@pytest.mark.row("cancel a running job", runs=3)
def test_a_running_job_is_cancelled_and_its_trainer_ends(site: Site) -> None:
    site.service.start_worker()
    job = site.submit()
    pid = site.service.wait_for_trainer()
    assert site.client.post(f"/v1/jobs/{job}/cancel").json()["status"] in ("cancelling", "cancelled")
    (ended,) = site.settle(expected="cancelled")
    assert (ended["model_id"], ended["error"]) == (None, None)
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)


@pytest.mark.row("kill -9 the supervisor of `minimand up`", runs=3)
def test_a_killed_installation_leaves_nothing_running_and_its_next_start_finishes_the_job(
    tmp_path: Path, houses: Houses, record: Record
) -> None:
    with running(tmp_path / "home") as service:
        up = service.start_up()
        with service.client() as client:
            site = Site(service, client, upload(client, ROWS), record, houses.weights_of)
            job = site.submit()
            site.wait_until_under_way(job)
        everyone = service.processes()
        assert len(everyone) >= 5, "the supervisor, the broker, the API, the worker and the trainer"
        site.strike(up.kill)
        wait_until_gone(everyone, timeout_seconds=AT_ONCE_SECONDS)

        again = service.start_up()
        with service.client() as site.client:
            site.settle()
        assert again.stop() == 0
        wait_until_gone(service.processes(), timeout_seconds=AT_ONCE_SECONDS)
