"""Comparisons over HTTP: a job of its own kind on the training queue, with a table as its result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.jobs import repository
from tests.service import AppHouse, error_of, running, tickets, tiny_spec, upload


class House(AppHouse):
    """The application without a worker."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.dataset = upload(self.client, tickets(60))

    def compare(self, *, headers: dict[str, str] | None = None, **spec: Any) -> Any:
        body = {"dataset": self.dataset, "losses": ["cross_entropy", "focal"], **spec}
        return self.client.post("/v1/comparisons", json=body, headers=headers)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def test_it_is_a_job_of_its_own_kind(house: House) -> None:
    reply = house.compare(name="focal?", metadata={"team": "nlp"})
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["status"], job["result"], job["name"]) == ("comparison", "queued", None, "focal?")
    assert job["spec"]["metric"] == "macro_f1"
    assert [loss["type"] for loss in job["spec"]["losses"]] == ["cross_entropy", "focal"]
    assert house.client.get(f"/v1/comparisons/{job['id']}").json() == job
    assert house.client_of_another_project().get(f"/v1/comparisons/{job['id']}").status_code == 404
    assert house.client.get(f"/v1/evaluations/{job['id']}").status_code == 404
    listed = house.client.get("/v1/jobs", params={"kind": "comparison"}).json()["data"]
    assert [one["id"] for one in listed] == [job["id"]]
    assert house.client.get("/v1/jobs").json()["data"] == []


def test_a_training_slot_takes_it(house: House) -> None:
    job = house.compare().json()["id"]
    with house.database.write() as session:
        claim = repository.claim_next(
            session, queues=("cpu",), kinds=("training", "comparison"), owner="w", lease=60, now=house.database.now
        )
    assert claim is not None
    assert claim.job_id == job


def test_the_same_key_makes_one_comparison(house: House) -> None:
    headers = {"Idempotency-Key": "c-1"}
    assert house.compare(headers=headers).json()["id"] == house.compare(headers=headers).json()["id"]


def test_a_step_that_would_not_fit_is_refused_and_much_memory_is_warned_of_by_loss(
    tmp_path: Path, house: House
) -> None:
    coupled = {"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]}
    spec: dict[str, Any] = {"losses": ["cross_entropy", coupled], "training": {"max_length": 512}}
    (warning,) = house.compare(**spec).json()["warnings"]
    assert warning.startswith("cross_entropy+supcon: 'supcon' couples the 32 rows of a step")
    limited = House(tmp_path / "limited", trainer_memory_bytes=6_000_000_000)
    reply = limited.compare(**spec)
    assert reply.status_code == 422
    assert (error_of(reply)["param"], error_of(reply)["code"]) == ("/training/batch_size", "too_much_memory")
    limited.close()


def test_a_fault_in_a_loss_is_pointed_at(house: House) -> None:
    error = error_of(house.compare(losses=["cross_entropy", {"type": "focal", "gama": 2}]))
    assert error["param"] == "/losses/1/gama"
    assert "Did you mean 'gamma'?" in error["message"]


def test_a_teacher_that_is_not_there_is_pointed_at(house: House) -> None:
    taught = {"terms": [{"loss": "cross_entropy"}, {"loss": {"type": "kd", "teacher": "mdl_1"}}]}
    error = error_of(house.compare(losses=["cross_entropy", taught]))
    assert (error["param"], error["code"]) == ("/losses/1/terms/1/loss/teacher", "model_not_found")


def test_one_loss_is_no_comparison_but_over_folds(house: House) -> None:
    assert error_of(house.compare(losses=["focal"]))["param"] == "/losses"
    job = house.compare(losses=["focal"], folds=3).json()
    assert (job["spec"]["folds"], job["spec"]["seeds"], job["spec"]["split"]["test"]) == (3, None, 0)


def test_folds_that_cannot_be_made_are_refused(house: House) -> None:
    assert error_of(house.compare(folds=3, seeds=3))["param"] == "/seeds"
    assert error_of(house.compare(folds=3, split={"test": 0.1}))["param"] == "/split/test"
    too_many = error_of(house.compare(folds=20, split={"group_column": "label"}))
    assert too_many["param"] == "/folds"
    assert "groups, which stay whole" in too_many["message"]


def test_a_worker_carries_it_out_and_may_be_paused(tmp_path: Path) -> None:
    with running(tmp_path / "home") as service:
        service.start_up()
        with service.client() as client:
            dataset = upload(client, tickets(120))
            spec = {**tiny_spec(dataset, epochs=3), "losses": ["cross_entropy", "focal", "hinge"], "seeds": 3}
            job = client.post("/v1/comparisons", json=spec).json()["id"]
            service.wait_for_checkpoint(client, job)
            client.post(f"/v1/jobs/{job}/pause")
            paused = service.wait_for_job(client, job, ["paused", "succeeded"])
            if paused["status"] == "paused":
                client.post(f"/v1/jobs/{job}/resume")
            done = service.wait_for_job(client, job, ["succeeded"])
            runs = client.get(f"/v1/jobs/{job}/metrics", params={"name": "hinge/macro_f1"}).json()["data"]
    assert [arm["id"] for arm in done["result"]["arms"]] == ["cross_entropy", "focal", "hinge"]
    assert [len(arm["values"]) for arm in done["result"]["arms"]] == [3, 3, 3]
    assert [one["step"] for one in runs] == [3, 6, 9]  # no run was made twice
    assert (done["model_id"], done["attempts"]) == (None, 0)
