"""Dry runs over HTTP: a job of its own kind on the short queue, and `Prefer: wait` as RFC 7240 has it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.http.prefer import wait_seconds
from app.jobs import repository
from tests.service import (
    AppHouse,
    RunningService,
    error_of,
    events_of,
    reasons_of,
    running,
    slow_spec,
    submit,
    tickets,
    tiny_spec,
    upload,
)

REPORT = {
    "terms": [
        {
            "id": "cross_entropy",
            "loss": "cross_entropy",
            "weight": 1.0,
            "value": {"mean": 1.1, "min": 1.0, "max": 1.2},
            "gradient_norm": {"mean": None, "min": None, "max": None},
            "gradient_share": None,
            "class_shares": {"refund": 1.0},
            "rows_counted": 1.0,
        }
    ],
    "batches": {
        "steps": 4,
        "rows": 128,
        "tokens": 1000,
        "padding_share": 0.1,
        "seconds_per_step": 0.2,
        "estimated_seconds": 4.0,
        "device": "cpu",
        "threads": 2,
    },
    "warnings": ["look"],
}


class House(AppHouse):
    """The application without a worker; the test plays it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.dataset = upload(self.client, tickets(60))

    def dry_run(self, *, headers: dict[str, str] | None = None, **spec: Any) -> Any:
        return self.client.post("/v1/jobs/dry_run", json={"dataset": self.dataset, **spec}, headers=headers)

    def claim(self, *, kind: str = "dry_run", queue: str = "short") -> repository.Claim | None:
        with self.database.write() as session:
            return repository.claim_next(
                session, queues=(queue,), kinds=(kind,), owner="w", lease=60, now=self.database.now
            )

    def finish(self, status: str = "succeeded", **values: Any) -> None:
        claim = self.claim()
        assert claim is not None
        with self.database.write() as session:
            repository.finish(session, claim, status=status, now=self.database.now, **values)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def test_without_a_worker_it_is_queued_and_stays_so(house: House) -> None:
    reply = house.dry_run()
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert "preference-applied" not in reply.headers
    assert (job["kind"], job["status"], job["result"], job["model_id"]) == ("dry_run", "queued", None, None)
    assert job["spec"]["loss"]["type"] == "cross_entropy"
    assert house.client.get(f"/v1/jobs/{job['id']}").json() == job


def test_it_waits_on_the_short_queue_for_a_slot_of_its_kind(house: House) -> None:
    job_id = house.dry_run().json()["id"]
    assert house.claim(queue="cpu") is None
    assert house.claim(kind="training") is None
    claim = house.claim()
    assert claim is not None
    assert claim.job_id == job_id


def test_a_training_is_none_of_the_short_slots_business(house: House) -> None:
    job_id = submit(house.client, {"dataset": house.dataset})
    assert house.claim() is None
    assert house.client.get(f"/v1/jobs/{job_id}").json()["result"] is None


def test_it_is_listed_under_its_kind(house: House) -> None:
    job_id = house.dry_run().json()["id"]
    assert house.client.get("/v1/jobs").json()["data"] == []
    listed = house.client.get("/v1/jobs", params={"kind": "dry_run"}).json()["data"]
    assert [job["id"] for job in listed] == [job_id]


def test_a_spec_that_cannot_work_is_refused_before_it_is_queued(house: House) -> None:
    reply = house.dry_run(loss={"type": "focal_los"})
    assert reply.status_code == 422
    assert error_of(reply)["param"] == "/loss/type"
    assert house.client.get("/v1/jobs", params={"kind": "dry_run"}).json()["data"] == []


def test_it_can_be_cancelled(house: House) -> None:
    job_id = house.dry_run().json()["id"]
    assert house.client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_waiting_in_vain_answers_as_it_stands(house: House) -> None:
    started = time.monotonic()
    reply = house.dry_run(headers={"Prefer": "wait=1"})
    assert time.monotonic() - started >= 1
    assert (reply.status_code, reply.json()["status"]) == (201, "queued")
    assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"


@pytest.mark.parametrize(("status", "values"), [("succeeded", {"result": REPORT}), ("failed", {})])
def test_waiting_ends_with_the_job(house: House, status: str, values: dict[str, Any]) -> None:
    def work() -> None:
        time.sleep(0.5)
        house.finish(status, **values)

    worker = threading.Thread(target=work)
    worker.start()
    reply = house.dry_run(headers={"Prefer": "respond-async, wait=30"})
    worker.join()
    assert reply.status_code == 200
    assert reply.headers["preference-applied"] == "wait=30"
    assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"
    assert reply.json()["status"] == status
    assert reply.json()["result"] == values.get("result")


def test_a_repeat_under_the_same_key_returns_the_first(house: House) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = house.dry_run(headers=headers), house.dry_run(headers=headers)
    assert first.json()["id"] == second.json()["id"]
    other = house.dry_run(headers=headers, name="another")
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")


def test_one_key_is_not_good_for_a_dry_run_and_its_training(house: House) -> None:
    headers = {"Idempotency-Key": "both"}
    assert house.dry_run(headers=headers).status_code == 201
    reply = house.client.post("/v1/jobs", json={"dataset": house.dataset}, headers=headers)
    assert (reply.status_code, error_of(reply)["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (None, None),
        ([], None),
        (["wait=30"], 30),
        (["WAIT = 5"], 5),
        (['wait="7"'], 7),
        (["wait=8; strictly"], 8),
        (["return=minimal, wait=9"], 9),
        (["respond-async", "wait=10"], 10),
        (["wait=11, wait=12"], 11),
        (["wait=600"], 60),
        (["wait=0"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=soon"], None),
        (["wait"], None),
        (["wait="], None),
        (["wait=٣"], None),
        (["await=5"], None),
        (["wait=99999999999999999999"], None),
        (["handling=lenient"], None),
    ],
)
def test_what_prefer_asks_for(lines: list[str] | None, seconds: int | None) -> None:
    assert wait_seconds(lines) == seconds


def test_a_preference_that_makes_no_sense_is_ignored(house: House) -> None:
    reply = house.dry_run(headers={"Prefer": "wait=soon, teleport"})
    assert (reply.status_code, reply.json()["status"]) == (201, "queued")
    assert "preference-applied" not in reply.headers


# ------------------------------------------------------------------------------------------------------ with a worker


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with running(tmp_path / "home") as service:
        service.start_up()
        yield service


def test_a_dry_run_is_answered_while_a_training_holds_the_other_slot(service: RunningService) -> None:
    with service.client() as client:
        dataset = upload(client, tickets(150))
        training = submit(client, slow_spec(dataset, max_steps=100_000))
        service.wait_for_job(client, training, ["running"])
        loss = {"terms": [{"loss": "cross_entropy"}, {"loss": "supcon", "weight": 0.2}]}
        spec = {**tiny_spec(dataset), "loss": loss}
        reply = client.post("/v1/jobs/dry_run", json=spec, headers={"Prefer": "wait=60"})
        assert reply.status_code == 200, reply.text
        job = reply.json()
        assert (job["status"], job["model_id"], job["error"]) == ("succeeded", None, None)
        assert [term["id"] for term in job["result"]["terms"]] == ["cross_entropy", "supcon"]
        assert job["result"]["batches"]["steps"] == 4
        assert job["progress"]["steps"] == 4
        assert reasons_of(events_of(client, job["id"])) == ["queued", "claimed", "succeeded"]
        assert client.get("/v1/models").json()["data"] == []
        assert client.get(f"/v1/jobs/{training}").json()["status"] == "running"
        client.post(f"/v1/jobs/{training}/cancel").raise_for_status()
        service.wait_for_job(client, training, ["cancelled"])
