"""A total account, after Jepsen's total queue: callers submit for a minute while everything fails at random.

Every request is noted as ok, refused or unknown. When the faults stop, the queue is drained: what was ok has come to
one end, what was refused is not there, what is unknown is there once or not at all.
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import redis

from tests.faults.site import ROWS, Record
from tests.service import (
    ENDED,
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    Program,
    RunningService,
    all_items,
    events_of,
    running,
    tiny_spec,
    upload,
    wait_until,
)

STORM_SECONDS = 60
SUBMIT_EVERY_SECONDS = 2.5


class Caller:
    """Submits small jobs, half of them until it knows that they are there, and now and then changes its mind."""

    def __init__(self, service: RunningService, dataset: str, seed: int) -> None:
        self._service, self._dataset = service, dataset
        self._random = random.Random(f"caller {seed}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.ok: dict[str, str] = {}  # job by request
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.withdrawn: set[str] = set()  # jobs

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _call(self) -> None:
        number = 0
        while not self._over.is_set():
            self._submit(f"request {number}", is_patient=number % 2 == 0)
            if self.ok and self._random.random() < 0.3:
                job = self._random.choice(list(self.ok.values()))
                wish = self._random.choice(["cancel", "pause", "resume"])
                if wish == "cancel":
                    self.withdrawn.add(job)
                with suppress(httpx.TransportError), self._service.client() as client:
                    client.post(f"/v1/jobs/{job}/{wish}")
            number += 1
            self._over.wait(SUBMIT_EVERY_SECONDS)

    def _submit(self, name: str, *, is_patient: bool) -> None:
        spec = {**tiny_spec(self._dataset, max_steps=20), "metadata": {"request": name}}
        headers = {"Idempotency-Key": name} if is_patient else {}
        while True:
            try:
                with self._service.client() as client:
                    reply = client.post("/v1/jobs", json=spec, headers=headers)
            except httpx.TransportError:
                if is_patient:
                    time.sleep(0.3)
                    continue
                self.unknown.add(name)
                return
            if reply.status_code == 201:
                self.ok[name] = reply.json()["id"]
            elif reply.status_code == 503:
                self.refused.add(name)
            else:
                raise AssertionError(reply.text)
            return


class Storm:
    """One fault after another, chosen by a seed. What it kills it starts again."""

    def __init__(self, service: RunningService, broker: str, seed: int) -> None:
        self._service, self._broker = service, broker
        self._random = random.Random(f"storm {seed}")
        self._api = service.programs[-1]
        self._workers = [service.start_worker() for _ in range(2)]
        self.struck: Counter[str] = Counter()

    def rage(self, seconds: float) -> None:
        """For so long."""
        until = time.monotonic() + seconds
        faults: list[Callable[[], None]] = [
            self.kill_a_trainer,
            self.kill_a_worker,
            self.stop_a_worker,
            self.kill_the_api,
            self.let_a_worker_sleep,
            self.empty_the_broker,
        ]
        while time.monotonic() < until:
            time.sleep(self._random.uniform(0.5, 3))
            fault = self._random.choice(faults)
            fault()
            self.struck[fault.__name__] += 1

    def kill_a_trainer(self) -> None:
        for pid in sorted(self._service.trainers_at_work())[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_a_worker(self) -> None:
        self._replace(Program.kill)

    def stop_a_worker(self) -> None:
        self._replace(Program.stop)

    def _replace(self, end: Callable[[Program], object]) -> None:
        worker = self._workers.pop(self._random.randrange(len(self._workers)))
        end(worker)
        self._workers.append(self._service.start_worker())

    def kill_the_api(self) -> None:
        self._api.kill()
        self._api = self._service.start_api()

    def let_a_worker_sleep(self) -> None:
        worker = self._random.choice(self._workers)  # in a write, maybe: then all others wait as long
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(1.5 * LEASE_SECONDS)
        os.kill(worker.pid, signal.SIGCONT)

    def empty_the_broker(self) -> None:
        with redis.Redis.from_url(self._broker) as client:
            client.flushall()


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.row("a minute of random faults, then the account", runs=4)
def test_what_was_accepted_in_a_storm_comes_to_one_end(
    tmp_path: Path, record: Record, valkey_server: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_database_url") if record.seed % 2 else None
    settings = {"broker_url": valkey_server, "database_url": url, "max_attempts": 1000}
    with running(tmp_path / "home", **settings) as service:
        service.start_api()
        with service.client() as client:
            dataset = upload(client, ROWS)
        storm = Storm(service, valkey_server, record.seed)
        caller = Caller(service, dataset, record.seed)
        caller.start()
        try:
            storm.rage(STORM_SECONDS)
        finally:
            caller.stop()
        calm_at = time.monotonic()
        with service.client() as client:
            _drain(service, client)
            record.recoveries.append(time.monotonic() - calm_at)
            _account_for(client, caller, record)
        wait_until(lambda: not service.run_directories(), 30)
        assert not service.temporary_files()


def _drain(service: RunningService, client: httpx.Client) -> None:
    def is_drained() -> bool:
        jobs = all_items(client, "/v1/jobs", limit=100)
        for job in jobs:
            if job["status"] == "paused":
                client.post(f"/v1/jobs/{job['id']}/resume")
        return all(job["status"] in ENDED for job in jobs)

    wait_until(is_drained, 5 * PATIENCE_SECONDS, service.log_of_all)


def _account_for(client: httpx.Client, caller: Caller, record: Record) -> None:
    jobs = all_items(client, "/v1/jobs", limit=100)
    asked = Counter(job["metadata"]["request"] for job in jobs)
    by_id = {job["id"]: job for job in jobs}
    models = Counter(model["job_id"] for model in all_items(client, "/v1/models"))
    record.lost = len(set(caller.ok.values()) - set(by_id))
    record.duplicated = sum(count - 1 for count in asked.values())
    for job in jobs:
        events = events_of(client, job["id"])
        ends = [event["data"]["reason"] for event in events if event["data"].get("reason") in ENDED]
        record.lost += not ends
        record.duplicated += len(ends) > 1
        record.duplicated += models[job["id"]] > 1
        assert ends == [job["status"]]
        assert models[job["id"]] == (job["status"] == "succeeded"), job
        expected = {"succeeded", "cancelled"} if job["id"] in caller.withdrawn else {"succeeded"}
        assert job["status"] in expected, job
    assert record.lost == record.duplicated == 0, record
    assert set(asked) <= set(caller.ok) | caller.unknown, "a request that was refused left a job"
    assert set(caller.ok) <= set(asked)
    assert len(caller.ok) > 5, (caller.ok, caller.refused, caller.unknown)
