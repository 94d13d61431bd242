"""The broker only rings: whatever becomes of it, jobs are accepted, run, and are not disturbed while they run."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from app.broker import EmbeddedBroker
from app.queue import JobQueue
from app.supervisor import PARENT_PID_VARIABLE
from tests.conftest import wait_for_valkey
from tests.faults.conftest import Houses, own_site
from tests.faults.proxy import proxy_to
from tests.faults.site import Record
from tests.service import events_of, reasons_of, slow_spec, submit, wait_until

# A request to a service whose broker does not answer waits a second for it, and then some on a busy machine.
NO_LONGER_THAN_SECONDS = 10


class Broker:
    """A Valkey of the test's own, which it may kill and start again."""

    def __init__(self, home: Path) -> None:
        self._broker = EmbeddedBroker(home)
        self.start()

    @property
    def url(self) -> str:
        return self._broker.url

    def start(self) -> None:
        self._broker.prepare()
        environment = {**os.environ, PARENT_PID_VARIABLE: str(os.getpid())}
        self._process = subprocess.Popen(self._broker.command(), env=environment)
        wait_for_valkey(self.url)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker-home")
    yield broker
    broker.kill()


@pytest.mark.row("the broker is killed while a job runs, and comes back 30 s later", runs=3)
@pytest.mark.proof
def test_a_running_job_does_not_notice_that_the_broker_was_away(
    tmp_path: Path, broker: Broker, houses: Houses, record: Record
) -> None:
    with own_site(tmp_path / "home", houses, record, broker_url=broker.url) as site:
        site.service.start_worker()
        job = site.submit()
        site.wait_until_under_way(job)
        broker.kill()
        away_since = time.time()
        second = site.submit()
        assert site.client.get("/readyz").json()["parts"]["broker"] == "unreachable"
        site.service.wait_for_job(site.client, second, ["running"])
        record.recoveries.append(time.time() - away_since)  # by polling, once the first is done
        time.sleep(max(0.0, 30 - (time.time() - away_since)))
        broker.start()
        site.submit()
        site.settle()
        for one in site.accepted:
            assert reasons_of(events_of(site.client, one)) == ["queued", "claimed", "succeeded"]


@pytest.mark.proof
@pytest.mark.row("the broker is down from the start", runs=3)
def test_with_the_broker_killed_jobs_are_accepted_and_run_by_polling(
    tmp_path: Path, broker: Broker, houses: Houses, record: Record
) -> None:
    with own_site(tmp_path / "home", houses, record, broker_url=broker.url) as site:
        site.service.start_worker()
        broker.kill()
        job, unwanted = (submit(site.client, slow_spec(site.dataset, max_steps=20)) for _ in range(2))
        assert site.client.post(f"/v1/jobs/{unwanted}/cancel").json()["status"] == "cancelled"
        assert site.client.get("/readyz").json()["parts"]["broker"] == "unreachable"
        site.service.wait_for_job(site.client, job, ["succeeded"])
        assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "succeeded"]


@pytest.mark.row("FLUSHALL with 100 jobs queued", runs=1)
@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_queued_jobs_run_though_every_message_was_lost(
    tmp_path: Path, broker: Broker, houses: Houses, record: Record
) -> None:
    with own_site(tmp_path / "home", houses, record, broker_url=broker.url) as site:
        specs = {"max_steps": 2, "epochs": 1}
        jobs = [submit(site.client, slow_spec(site.dataset, **specs)) for _ in range(100)]
        with redis.Redis.from_url(broker.url) as client:
            client.flushall()
        # Two steps each: what is proved is that each is claimed once, in order.
        site.service.start_worker(spare_trainers=True)
        ended = [site.service.wait_for_job(site.client, job, ["succeeded"], timeout_seconds=1000) for job in jobs]
        record.lost = sum(job["model_id"] is None for job in ended)
        record.duplicated = len(ended) - len({job["model_id"] for job in ended})
        assert record.lost == record.duplicated == 0
        started = [job["started_at"] for job in ended]
        assert started == sorted(started)
        for job in jobs:
            assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "succeeded"]


@pytest.mark.proof
@pytest.mark.row("the broker's connections are swallowed, cut, reset, late", runs=2)
@pytest.mark.parametrize("harm", ["black_hole", "cut", "reset", "delay", "refuse"])
def test_a_bad_network_to_the_broker_delays_a_job_and_no_more(
    tmp_path: Path, broker: Broker, houses: Houses, record: Record, harm: str
) -> None:
    address = urlsplit(broker.url)
    assert address.hostname is not None
    assert address.port is not None
    with proxy_to(address.hostname, address.port) as proxy:
        url = broker.url.replace(f":{address.port}", f":{proxy.port}")
        with own_site(tmp_path / "home", houses, record, broker_url=url) as site:
            site.service.start_worker()
            first = site.submit()  # opens the connections
            site.wait_until_under_way(first)
            if harm in ("black_hole", "delay", "refuse"):
                proxy.set(harm)  # type: ignore[arg-type]
            if harm in ("cut", "reset", "refuse"):
                proxy.cut(reset=harm == "reset")
            began = time.monotonic()
            site.submit()
            assert time.monotonic() - began < NO_LONGER_THAN_SECONDS
            site.settle()
            proxy.set("pass")
            for job in site.accepted:
                assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "succeeded"]


_DOORBELL = """
import os, sys
from workers.celery_app import make_worker_app, serve
say = lambda word: os.write(1, word + b"\\n")  # not print: Celery takes that over
serve(make_worker_app(sys.argv[1], lambda: say(b"ring"), lambda: say(b"stop")), ["cpu"])
"""


@pytest.mark.row("the broker is killed and comes back while a worker listens", runs=3)
def test_a_worker_hears_again_once_the_broker_is_back(tmp_path: Path, broker: Broker, record: Record) -> None:
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
        broker.kill()
        queue.wake("cpu")
        broker.start()
        back_at = time.monotonic()
        wait_until(is_heard, 60)
        record.recoveries.append(time.monotonic() - back_at)
        listener.terminate()
        listener.wait(30)
        assert "stop" in heard.read_text().splitlines()  # a late ring may follow it
    finally:
        listener.kill()
        listener.wait()
