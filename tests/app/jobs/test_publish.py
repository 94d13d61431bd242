"""A checkpoint is published once, by a short job that keeps it meanwhile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.db.tables import CheckpointRow, JobRow
from app.ids import new_id
from app.jobs import repository
from app.jobs.repository import Claim
from tests.service import AppHouse, error_of, events_of, submit, tickets, upload


class House(AppHouse):
    """The application without a worker; the test plays it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.dataset = upload(self.client, tickets(60))

    def train(self, kind: str = "training") -> Claim:
        """A new job, claimed."""
        if kind == "training":
            job_id = submit(self.client, {"dataset": self.dataset, "name": "n", "metadata": {"team": "a"}})
        else:
            body = {"dataset": self.dataset, "losses": ["cross_entropy", "focal"]}
            job_id = self.client.post("/v1/comparisons", json=body).json()["id"]
        claim = self.claim(kind, "cpu")
        assert claim.job_id == job_id
        return claim

    def claim(self, kind: str = "publish", queue: str = "short") -> Claim:
        with self.database.write() as session:
            claim = repository.claim_next(
                session, queues=(queue,), kinds=(kind,), owner="w", lease=60, now=self.database.now
            )
        assert claim is not None
        return claim

    def checkpoint(self, claim: Claim, step: int) -> str:
        row = CheckpointRow(
            id=new_id("ckpt"),
            job_id=claim.job_id,
            fence=claim.fence,
            step=step,
            epoch=1.0,
            folder=f"jobs/{step}",
            bytes=1,
            sha256="s",
            metrics={},
            created_at=1.0,
        )
        with self.database.write() as session:
            repository.add_checkpoint(session, claim, row, [])
        return row.id

    def forget(self, job_id: str, keep: int = 2) -> list[int]:
        """The steps whose checkpoints are forgotten."""
        with self.database.write() as session:
            return [row.step for row in repository.forget_checkpoints(session, job_id, keep=keep)]

    def finish(self, claim: Claim, status: str) -> None:
        with self.database.write() as session:
            repository.finish(session, claim, status=status, now=self.database.now)

    def publish(self, job_id: str, checkpoint_id: str, client: Any = None) -> Any:
        return (client or self.client).post(f"/v1/jobs/{job_id}/checkpoints/{checkpoint_id}/publish")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("publish") / "home")
    yield house
    house.close()


@pytest.fixture(autouse=True)
def nothing_is_left_queued(house: House) -> Iterator[None]:
    yield
    for kind in ("training", "comparison", "publish"):
        for job in house.client.get("/v1/jobs", params={"kind": kind, "status": "queued"}).json()["data"]:
            house.client.post(f"/v1/jobs/{job['id']}/cancel")


def test_it_is_a_short_job_that_says_what_it_is_made_of(house: House) -> None:
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    reply = house.publish(claim.job_id, checkpoint)
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    parent = house.client.get(f"/v1/jobs/{claim.job_id}").json()
    assert (job["kind"], job["status"], job["model_id"]) == ("publish", "queued", None)
    assert job["source"] == {"job_id": claim.job_id, "checkpoint_id": checkpoint}
    assert parent["source"] is None
    assert {name: job[name] for name in ("name", "metadata", "dataset", "spec")} == {
        name: parent[name] for name in ("name", "metadata", "dataset", "spec")
    }
    assert "step 7" in events_of(house.client, job["id"])[0]["message"]
    assert house.claim().job_id == job["id"]


@pytest.mark.parametrize("parent", ["running", "paused", "failed", "cancelled", "succeeded"])
def test_it_matters_not_what_became_of_the_training(house: House, parent: str) -> None:
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    if parent != "running":
        house.finish(claim, parent)
    assert house.client.get(f"/v1/jobs/{claim.job_id}").json()["status"] == parent
    assert house.publish(claim.job_id, checkpoint).status_code == 201


@pytest.mark.parametrize("status", ["queued", "running", "succeeded"])
def test_a_repeat_returns_the_same_job(house: House, status: str) -> None:
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    first = house.publish(claim.job_id, checkpoint)
    if status != "queued":
        work = house.claim()
        if status == "succeeded":
            house.finish(work, status)
            assert house.forget(claim.job_id, keep=0) == [7]
    again = house.publish(claim.job_id, checkpoint)
    assert (again.status_code, again.json()["status"]) == (201, status)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_publication_that_made_no_model_may_be_tried_again(house: House, status: str) -> None:
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    first = house.publish(claim.job_id, checkpoint).json()["id"]
    house.finish(house.claim(), status)
    again = house.publish(claim.job_id, checkpoint)
    assert again.status_code == 201
    assert again.json()["id"] != first


def test_the_checkpoint_is_kept_until_it_is_published(house: House) -> None:
    claim = house.train()
    oldest, *_ = [house.checkpoint(claim, step) for step in (1, 2, 3, 4)]
    house.publish(claim.job_id, oldest)
    assert house.forget(claim.job_id) == [2]
    house.finish(house.claim(), "succeeded")
    assert house.forget(claim.job_id) == [1]


def test_what_is_not_there_is_not_published(house: House) -> None:
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    other = house.train()
    stranger = house.client_of_another_project()
    for reply, code in (
        (house.publish("job_unknown", checkpoint), "job_not_found"),
        (house.publish(claim.job_id, "ckpt_unknown"), "checkpoint_not_found"),
        (house.publish(other.job_id, checkpoint), "checkpoint_not_found"),
        (house.publish(claim.job_id, checkpoint, stranger), "job_not_found"),
    ):
        assert (reply.status_code, error_of(reply)["code"]) == (404, code)


def test_a_comparison_has_no_model_to_publish(house: House) -> None:
    claim = house.train("comparison")
    reply = house.publish(claim.job_id, house.checkpoint(claim, 7))
    assert (reply.status_code, error_of(reply)["code"]) == (409, "cannot_publish")


def test_a_dataset_that_is_gone_cannot_measure_the_model(tmp_path: Path) -> None:
    house = House(tmp_path / "home")
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    house.finish(claim, "succeeded")
    assert house.client.delete(f"/v1/datasets/{house.dataset}").status_code == 204
    reply = house.publish(claim.job_id, checkpoint)
    assert (reply.status_code, error_of(reply)["code"]) == (409, "dataset_deleted")
    house.close()


def test_a_model_that_is_gone_cannot_be_gone_on_from(house: House) -> None:
    claim = house.train()
    checkpoint = house.checkpoint(claim, 7)
    with house.database.write() as session:
        row = session.get_one(JobRow, claim.job_id)
        row.spec = {**row.spec, "model": "mdl_deleted"}
    reply = house.publish(claim.job_id, checkpoint)
    assert (reply.status_code, error_of(reply)["code"]) == (409, "model_deleted")
    assert "'mdl_deleted'" in error_of(reply)["message"]


def test_an_idempotency_key_is_for_one_checkpoint(house: House) -> None:
    claim = house.train()
    first, second = (house.checkpoint(claim, step) for step in (1, 2))
    path = f"/v1/jobs/{claim.job_id}/checkpoints"
    key = {"Idempotency-Key": "publish-once"}
    jobs = [house.client.post(f"{path}/{first}/publish", headers=key).json()["id"] for _ in range(2)]
    assert jobs[0] == jobs[1]
    other = house.client.post(f"{path}/{second}/publish", headers=key)
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")
