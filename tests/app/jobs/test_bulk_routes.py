"""Prediction batches and evaluations over HTTP: a dataset in, two files out, for as long as they are kept."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.jobs import repository
from app.retention import DAY_SECONDS, Retention
from tests.app.jobs.bulk_house import BulkHouse
from tests.service import error_of, events_of, reasons_of, upload
from tests.tiny_base import learnable_rows

KIND = "prediction_batch"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BulkHouse]:
    house = BulkHouse(tmp_path_factory.mktemp("batches") / "home")
    yield house
    house.close()


@pytest.fixture(autouse=True)
def nothing_is_left_queued(house: BulkHouse) -> Iterator[None]:
    yield
    for kind in (KIND, "evaluation"):
        for job in house.client.get("/v1/jobs", params={"kind": kind, "status": "queued"}).json()["data"]:
            house.client.post(f"/v1/jobs/{job['id']}/cancel")


def ask(house: BulkHouse, **body: Any) -> Any:
    headers = body.pop("headers", None)
    given = {"model": house.model, "dataset": house.dataset, **body}
    return house.client.post("/v1/prediction_batches", json=given, headers=headers)


def download(house: BulkHouse, job: str, name: str) -> Any:
    return house.client.get(f"/v1/prediction_batches/{job}/{name}")


def lines_of(reply: Any) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/jsonl"
    assert int(reply.headers["content-length"]) == len(reply.content)
    return [json.loads(line) for line in reply.text.splitlines()]


def test_it_is_a_job_of_its_own_kind_on_a_queue_of_its_own(house: BulkHouse) -> None:
    reply = ask(house, name="all of them", metadata={"team": "nlp"})
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["status"], job["result"], job["name"]) == (KIND, "queued", None, "all of them")
    assert (job["spec"]["model"], job["spec"]["checkpoint_every_seconds"]) == (house.model, 60)
    assert house.client.get(f"/v1/jobs/{job['id']}").json() == job
    assert house.client.get(f"/v1/prediction_batches/{job['id']}").json() == job
    assert house.claim(KIND, "bulk").job_id == job["id"]
    assert house.client.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelling"


def test_every_row_is_answered_as_a_prediction_is_and_the_others_are_told_of(house: BulkHouse) -> None:
    texts = ["where is my parcel", "", "my money back please", None, "opening hours"]
    content = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    job = ask(house, dataset=upload(house.client, content, "texts.jsonl")).json()
    assert job["warnings"] == ["rows without a text: 2, the first is row 2. errors.jsonl has them."]
    done = house.carry_out(KIND)
    assert done["result"]["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
    assert (done["progress"]["step"], done["progress"]["steps"], done["model_id"]) == (5, 5, None)
    assert done["progress"]["request_counts"] == done["result"]["request_counts"]
    assert reasons_of(events_of(house.client, job["id"])) == ["queued", "claimed", "succeeded"]
    answers = lines_of(download(house, job["id"], "output"))
    errors = lines_of(download(house, job["id"], "errors"))
    assert [(line["row"], line["code"]) for line in errors] == [(2, "empty_text"), (4, "empty_text")]
    call = {"model": house.model, "input": [text for text in texts if text]}
    predicted = house.client.post("/v1/predictions", json=call).json()["results"]
    assert [line.pop("row") for line in answers] == [1, 3, 5]
    assert [line["label"] for line in answers] == [one["label"] for one in predicted]
    for line, one in zip(answers, predicted, strict=True):
        assert line["scores"] == pytest.approx(one["scores"], abs=1e-5)


def test_what_it_needs_stays_until_it_has_ended(house: BulkHouse) -> None:
    job = ask(house).json()["id"]
    for path, code in ((f"models/{house.model}", "model_in_use"), (f"datasets/{house.dataset}", "dataset_in_use")):
        reply = house.client.delete(f"/v1/{path}")
        assert (reply.status_code, error_of(reply)["code"]) == (409, code)
        assert job in error_of(reply)["message"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "mdl_unknown"}, "/model", "model_not_found"),
        ({"model": "minilm"}, "/model", "model_not_found"),
        ({"dataset": "ds_unknown"}, "/dataset", "dataset_not_found"),
        ({"modle": "m"}, "/modle", "unknown_field"),
        ({"checkpoint_every_seconds": -1}, "/checkpoint_every_seconds", "invalid_value"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_place(house: BulkHouse, body: Any, param: str, code: str) -> None:
    reply = ask(house, **body)
    assert reply.status_code == 422
    assert (error_of(reply)["param"], error_of(reply)["code"]) == (param, code)


def test_pairs_are_not_for_a_model_of_single_texts(house: BulkHouse) -> None:
    pairs = upload(house.client, b"text,text_pair\nhello,world\n")
    reply = ask(house, dataset=pairs)
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (422, "/dataset", "single_text_expected")


def test_another_projects_model_is_not_there(house: BulkHouse) -> None:
    stranger = house.client_of_another_project()
    dataset = upload(stranger, b"text\nhello\n")
    reply = stranger.post("/v1/prediction_batches", json={"model": house.model, "dataset": dataset})
    assert (reply.status_code, error_of(reply)["code"]) == (422, "model_not_found")


def test_the_same_key_makes_one_batch(house: BulkHouse) -> None:
    first, again = (ask(house, headers={"Idempotency-Key": "b-1"}).json()["id"] for _ in range(2))
    assert first == again


def test_files_are_there_once_it_has_succeeded_and_only_for_its_own_kind_and_project(house: BulkHouse) -> None:
    job = ask(house).json()["id"]
    assert error_of(download(house, job, "output"))["code"] == "not_succeeded"
    assert download(house, job, "output").status_code == 409
    (training,) = (one["id"] for one in house.client.get("/v1/jobs").json()["data"])
    stranger = house.client_of_another_project()
    missing = (
        download(house, training, "output"),
        download(house, "job_unknown", "errors"),
        stranger.get(f"/v1/prediction_batches/{job}/output"),
    )
    assert [(reply.status_code, error_of(reply)["code"]) for reply in missing] == [(404, "job_not_found")] * 3


def test_each_kind_is_looked_at_under_its_own_path(house: BulkHouse) -> None:
    batch, evaluation = ask(house).json(), measure(house).json()
    stranger = house.client_of_another_project()
    for job, path, other in (
        (batch, "prediction_batches", "comparisons"),
        (evaluation, "evaluations", "prediction_batches"),
    ):
        assert house.client.get(f"/v1/{path}/{job['id']}").json() == job
        assert error_of(stranger.get(f"/v1/{path}/{job['id']}"))["code"] == "job_not_found"
        reply = house.client.get(f"/v1/{other}/{job['id']}")
        assert (reply.status_code, error_of(reply)["code"]) == (404, "job_not_found")
        assert f"is of kind {job['kind']}, not " in error_of(reply)["message"]
        assert f"GET /v1/jobs/{job['id']}" in error_of(reply)["message"]


def test_a_batch_that_was_cancelled_tells_how_many_rows_it_had_answered(house: BulkHouse) -> None:
    job = ask(house).json()["id"]
    claim, counts = house.claim(KIND), {"total": 60, "completed": 31, "failed": 1}
    with house.database.write() as session:
        repository.take_over(session, claim, [], progress={"step": 32, "steps": 60, "request_counts": counts})
        repository.finish(session, claim, status="cancelled", now=house.database.now)
    found = house.client.get(f"/v1/prediction_batches/{job}").json()
    assert (found["status"], found["result"], found["progress"]["request_counts"]) == ("cancelled", None, counts)


def test_its_files_are_kept_for_a_time_and_then_only_what_it_came_to(house: BulkHouse) -> None:
    job = ask(house).json()["id"]
    house.carry_out(KIND)
    later = [29.0]
    retention = Retention(
        house.database, house.services.store, house.settings, lambda: time.time() + later[0] * DAY_SECONDS
    )
    list(retention.sweep())
    assert len(lines_of(download(house, job, "output"))) == 60
    later[0] = 31.0
    (key,) = (
        removal.name for removal in retention.sweep() if removal.what == "files of an ended job" and job in removal.name
    )
    assert not house.services.store.exists(key)
    reply = download(house, job, "output")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "output_removed")
    assert house.client.get(f"/v1/jobs/{job}").json()["result"]["request_counts"]["completed"] == 60


# ---------------------------------------------------------------------------------------------------------- evaluations

GROUPED = "text,label,split,country\n" + "".join(
    f"{text},{label},{'test' if row % 2 else 'train'},{'at' if row < 80 else 'be'}\n"
    for row, (text, label) in enumerate(learnable_rows(160, 5))
)


def measure(house: BulkHouse, **body: Any) -> Any:
    return house.client.post("/v1/evaluations", json={"model": house.model, "dataset": house.dataset, **body})


@pytest.fixture(scope="module")
def grouped(house: BulkHouse) -> str:
    """A dataset with parts and groups."""
    return upload(house.client, GROUPED.encode())


def test_an_evaluation_measures_a_part_by_group_and_with_changed_texts(house: BulkHouse, grouped: str) -> None:
    asked = {"dataset": grouped, "part": "test", "group_column": "country", "perturbations": ["typo"]}
    reply = measure(house, **asked, name="fair?")
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["name"], job["warnings"], job["spec"]["seed"]) == ("evaluation", "fair?", [], 17)
    done = house.carry_out("evaluation")
    result = done["result"]
    assert result["request_counts"] == {"total": 80, "completed": 80, "failed": 0}
    assert [(group["value"], group["rows"]) for group in result["groups"]] == [("at", 40), ("be", 40)]
    by_group = {group["value"]: group["metrics"]["macro_f1"] for group in result["groups"]}
    gap = result["gaps"]["macro_f1"]
    assert gap["gap"] == pytest.approx(by_group[gap["highest"]] - by_group[gap["lowest"]])
    (typo,) = result["perturbations"]
    assert typo["difference"]["accuracy"] == pytest.approx(typo["metrics"]["accuracy"] - result["metrics"]["accuracy"])
    lines = lines_of(house.client.get(f"/v1/evaluations/{job['id']}/output"))
    assert [line["row"] for line in lines] == list(range(2, 161, 2))
    assert sum(line["is_right"] for line in lines) / 80 == pytest.approx(result["metrics"]["accuracy"])
    assert lines_of(house.client.get(f"/v1/evaluations/{job['id']}/errors")) == []
    assert download(house, job["id"], "output").status_code == 404  # it is no prediction batch


def test_rows_that_the_model_learned_are_warned_of(house: BulkHouse) -> None:
    (warning,) = measure(house).json()["warnings"]
    assert "was trained on rows of this dataset" in warning


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "mdl_unknown"}, "/model", "model_not_found"),
        ({"dataset": "ds_unknown"}, "/dataset", "dataset_not_found"),
        ({"part": "test"}, "/part", "no_split"),
        ({"part": "dev"}, "/part", "invalid_value"),
        ({"group_column": "contry"}, "/group_column", "unknown_column"),
        ({"group_column": "text"}, "/group_column", "too_many_groups"),
        ({"perturbations": ["typos"]}, "/perturbations/0", "invalid_value"),
        ({"perturbations": ["typo", "typo"]}, "/perturbations", "invalid_value"),
        ({"text": "text\nhello\n"}, "/dataset", "no_labels"),
        ({"text": "text,label\nhello,never heard of\n"}, "/dataset", "unknown_labels"),
        ({"text": 'text,label\nhello,"[""other"", ""refund""]"\n'}, "/dataset", "wrong_task"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_place(
    house: BulkHouse, grouped: str, body: Any, param: str, code: str
) -> None:
    given = dict(body)
    if "text" in given:
        given["dataset"] = upload(house.client, given.pop("text").encode())
    elif param == "/group_column":
        given["dataset"] = grouped
    reply = measure(house, **given)
    assert reply.status_code == 422
    assert (error_of(reply)["param"], error_of(reply)["code"]) == (param, code)


def test_an_evaluations_model_and_dataset_stay_until_it_has_ended(house: BulkHouse) -> None:
    job = measure(house).json()["id"]
    for path in (f"models/{house.model}", f"datasets/{house.dataset}"):
        reply = house.client.delete(f"/v1/{path}")
        assert reply.status_code == 409
        assert job in error_of(reply)["message"]
