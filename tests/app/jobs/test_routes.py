"""Jobs over HTTP: what cannot work is refused before a row exists, what can is queued once, and wishes are heard."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from app.db.tables import CheckpointRow, JobRow
from app.jobs import repository
from app.jobs.repository import Claim, Event, Why, status_event
from tests.service import AppHouse, all_items, error_of, events_of, submit, tickets, upload, wait_until

MAX_BODY = 20_000


class House(AppHouse):
    """The application, with a good dataset and a few that no job can use."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, max_body_bytes=MAX_BODY, **settings)
        self.dataset = upload(self.client, tickets(60))

    def count_jobs(self) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(JobRow)) or 0

    def refuse(self, status: int, *, raw: str | bytes | None = None, **spec: Any) -> dict[str, Any]:
        """Post a body that must be refused; nothing may be queued by it."""
        before = self.count_jobs()
        body = json.dumps({"dataset": self.dataset, **spec}) if raw is None else raw
        reply = self.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == status, reply.text
        assert self.count_jobs() == before
        return error_of(reply)

    def submit(self, **spec: Any) -> str:
        return submit(self.client, {"dataset": self.dataset, **spec})

    def claim(self, job_id: str) -> Claim:
        """The job as a worker takes it; whatever waited before it is cancelled first."""
        with self.database.write() as session:
            older = select(JobRow.id).where(JobRow.status == "queued", JobRow.id < job_id)
            for other in session.scalars(older).all():
                repository.end_waiting(session, other, now=self.database.now)
            claim = repository.claim_next(
                session, queues=("cpu",), kinds=("training",), owner="w", lease=60, now=self.database.now
            )
        assert claim is not None
        assert claim.job_id == job_id
        return claim

    def release(self, claim: Claim) -> None:
        with self.database.write() as session:
            why = Why("worker_stopped", "asked to")
            repository.release(session, claim, charge=False, cap=3, why=why, now=self.database.now)

    def finish(self, claim: Claim, **values: Any) -> None:
        with self.database.write() as session:
            repository.finish(session, claim, now=self.database.now, **values)
            repository.append_events(session, claim.job_id, [status_event(values["status"], "ended")])

    def act(self, job_id: str, verb: str, status: int) -> Any:
        reply = self.client.post(f"/v1/jobs/{job_id}/{verb}")
        assert reply.status_code == status, reply.text
        return reply.json()["status"] if status == 202 else error_of(reply)

    def status(self, job_id: str) -> str:
        return str(self.client.get(f"/v1/jobs/{job_id}").json()["status"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("jobs"))
    yield house
    house.close()


# ------------------------------------------------------------------------------------------------------------- refusals

_REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "unknown loss": (
        {"loss": {"type": "focall"}},
        "/loss/type",
        "unknown_type",
        "unknown loss 'focall'. Did you mean 'focal'?",
    ),
    "unknown loss by name": ({"loss": "focall"}, "/loss", "unknown_type", "Did you mean 'focal'?"),
    "gamma below zero": (
        {"loss": {"type": "focal", "gamma": -1}},
        "/loss/gamma",
        "invalid_value",
        "'gamma' is -1, and must be at least 0",
    ),
    "alpha of unknown labels": (
        {"loss": {"type": "focal", "alpha": {"delivery": 1, "other": 1, "refnud": 2}}},
        "/loss/alpha",
        "unknown_label",
        "Did you mean 'refund'",
    ),
    "unknown key": ({"training": {"epoch": 3}}, "/training/epoch", "unknown_field", "unknown field 'epoch'"),
    "a loss that is one and several": (
        {"loss": {"type": "focal", "terms": []}},
        "/loss/type",
        "unknown_field",
        "unknown field 'type'",
    ),
    "a term beyond its limits": (
        {"loss": {"terms": [{"loss": {"type": "focal", "gamma": 9}}]}},
        "/loss/terms/0/loss/gamma",
        "invalid_value",
        "at most 5",
    ),
    "an auxiliary term alone": (
        {"loss": {"terms": [{"loss": "entropy_min"}]}},
        "/loss/terms/0/loss",
        "no_task_loss",
        "add a task loss",
    ),
    "a calibration that is none": (
        {"evaluation": {"calibrate": "temprature"}},
        "/evaluation/calibrate",
        "invalid_value",
        "Did you mean 'temperature'",
    ),
    "a temperature for scores": (
        {"loss": "hinge", "evaluation": {"calibrate": "temperature"}},
        "/evaluation/calibrate",
        "invalid_value",
        "`platt`",
    ),
    "a loss for numbers": ({"loss": "mse"}, "/loss/type", "loss_does_not_fit", "needs numbers"),
    "a billion epochs": (
        {"training": {"epochs": 1_000_000_000}},
        "/training/epochs",
        "invalid_value",
        "'epochs' is 1000000000, and must be at most 1000",
    ),
    "epochs as text": ({"training": {"epochs": "3"}}, "/training/epochs", "invalid_value", '"3"'),
    "nothing left to train on": (
        {"split": {"validation": 0.5, "test": 0.5}},
        "/split",
        "invalid_value",
        "leave nothing to train on",
    ),
    "unknown group column": (
        {"split": {"group_column": "texx"}},
        "/split/group_column",
        "unknown_column",
        "Did you mean 'text'?",
    ),
    "labels that no row has": (
        {"task": {"labels": ["delivery", "other", "awful"]}},
        "/task/labels",
        "invalid_value",
        "'awful'",
    ),
    "no such dataset": ({"dataset": "ds_nowhere"}, "/dataset", "dataset_not_found", "'ds_nowhere'"),
    "no such model": ({"model": "minilmm"}, "/model", "model_not_found", "Did you mean 'minilm'?"),
    "a URL as the model": (
        {"model": "https://evil.example/model"},
        "/model",
        "model_not_found",
        "never taken from a request",
    ),
    "a path as the model": ({"model": "/etc/passwd"}, "/model", "model_not_found", "never taken from a request"),
    "a path upwards as the model": ({"model": "../minilm"}, "/model", "model_not_found", "never taken from a request"),
    "longer texts than the model reads": (
        {"training": {"max_length": 4096}},
        "/training/max_length",
        "invalid_value",
        "at most 512",
    ),
    "half of a surrogate pair": ({"name": "\ud800"}, "/name", "invalid_value", "unicode"),
    "U+0000 in the name": ({"name": "a\x00b"}, "/name", "invalid_value", "U+0000"),
    "U+0000 in the metadata": ({"metadata": {"team": "n\x00lp"}}, "/metadata", "invalid_value", "U+0000"),
    "too much metadata": ({"metadata": {str(i): "x" for i in range(17)}}, "/metadata", "invalid_value", "16"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_a_spec_that_cannot_work_is_refused_with_its_place(house: House, name: str) -> None:
    spec, param, code, words = _REFUSED[name]
    error = house.refuse(422, **spec)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert words in error["message"]


_UNUSABLE: dict[str, tuple[bytes, str, str]] = {
    "no label column": (b"text,mood\nnice,good\npoor,bad\n", "missing_label_column", 'columns={"label": "'),
    "one class only": (b"text,label\nnice,good\ngreat,good\n", "one_class_only", "'good'"),
    "a row without text": (b'text,label\nnice,good\n"  ",bad\npoor,bad\n', "row_without_text", "row 2"),
    "a row without a label": (b"text,label\nnice,good\npoor,\npoor,bad\n", "row_without_label", "row 2"),
}


@pytest.mark.parametrize("name", _UNUSABLE)
def test_a_dataset_that_cannot_be_trained_on_is_refused(house: House, name: str) -> None:
    content, code, words = _UNUSABLE[name]
    error = house.refuse(422, dataset=upload(house.client, content))
    assert (error["param"], error["code"]) == ("/dataset", code)
    assert words in error["message"]


def test_an_unknown_label_column_is_refused_at_the_upload(house: House) -> None:
    reply = house.client.post(
        "/v1/datasets", files={"file": ("a.csv", tickets(10))}, data={"columns": '{"label": "lable"}'}
    )
    assert reply.status_code == 422
    error = error_of(reply)
    assert (error["param"], error["code"]) == ("/columns/label", "unknown_column")
    assert "Did you mean 'label'?" in error["message"]


def test_another_projects_dataset_is_as_good_as_none(house: House) -> None:
    theirs = upload(house.client_of_another_project(), tickets(10))
    assert house.refuse(422, dataset=theirs) == {
        **house.refuse(422, dataset="ds_nowhere"),
        "message": f"there is no dataset '{theirs}'. GET /v1/datasets lists yours.",
    }


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(house: House, number: str) -> None:
    spec = {"dataset": house.dataset, "training": {"optimizer": {"type": "adamw", "learning_rate": "@"}}}
    error = house.refuse(422, raw=json.dumps(spec).replace('"@"', number))
    assert (error["param"], error["code"]) == ("/training/optimizer/learning_rate", "invalid_value")
    assert "finite" in error["message"]


@pytest.mark.parametrize("body", ["{", "{'dataset': 1}", b'{"dataset": "\xff"}', "[" * 15_000, "9" * 5_000])
def test_a_body_that_is_not_json_is_malformed(house: House, body: str | bytes) -> None:
    assert house.refuse(400, raw=body)["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", ["", "[]", "null", '"dataset"', "{}"])
def test_json_that_is_no_spec_is_refused(house: House, body: str) -> None:
    house.refuse(422, raw=body)


def test_every_problem_is_told_at_once(house: House) -> None:
    error = house.refuse(422, training={"epochs": 0, "batch_size": 0})
    assert error["param"] == "/training/epochs"
    assert "/training/batch_size" in error["message"]


def test_a_body_that_is_too_large_is_not_read(house: House) -> None:
    error = house.refuse(413, name="x" * MAX_BODY)
    assert error["code"] == "body_too_large"
    assert f"larger than {MAX_BODY:,} bytes (MINIMAND_MAX_BODY_BYTES)" in error["message"]


def test_the_limit_that_is_told_is_the_routes_whatever_the_body_is(house: House) -> None:
    form = house.client.post("/v1/jobs", files={"file": b"x" * MAX_BODY})
    assert form.status_code == 413
    came = int(form.request.headers["content-length"])
    assert f"has {came:,} bytes, and none here may be larger than {MAX_BODY:,} bytes" in error_of(form)["message"]
    stream = house.client.post("/v1/jobs", content=iter([b"x" * MAX_BODY, b"x"]))  # of no length that is told
    assert stream.status_code == 413
    assert f"The body is larger than {MAX_BODY:,} bytes" in error_of(stream)["message"]


def test_a_wrong_method_is_named_with_the_right_ones(house: House) -> None:
    reply = house.client.delete(f"/v1/jobs/{house.submit()}")
    assert reply.status_code == 405
    assert error_of(reply)["code"] == "method_not_allowed"
    assert "GET" in reply.headers["allow"]


def test_an_unknown_path_is_not_found(house: House) -> None:
    reply = house.client.get("/v1/job")
    assert reply.status_code == 404
    error = error_of(reply)
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", None, "not_found")
    assert "/v1/job" in error["message"]


def test_a_body_that_says_it_is_no_json_is_refused(house: House) -> None:
    body = json.dumps({"dataset": house.dataset})
    reply = house.client.post("/v1/jobs", content=body, headers={"Content-Type": "text/plain"})
    assert reply.status_code == 415
    error = error_of(reply)
    assert error["code"] == "unsupported_media_type"
    assert "text/plain" in error["message"]


@pytest.mark.parametrize("path", ["", "/events", "/metrics", "/checkpoints"])
def test_an_unknown_job_is_not_found(house: House, path: str) -> None:
    reply = house.client.get(f"/v1/jobs/job_nowhere{path}")
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "job_not_found"


def test_an_unknown_jobs_stream_is_not_found_before_it_begins(house: House) -> None:
    reply = house.client.get("/v1/jobs/job_nowhere/events", headers={"Accept": "text/event-stream"})
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "job_not_found"


def test_a_character_that_postgres_cannot_hold_is_refused_not_a_fault(
    postgres_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    house = House(tmp_path_factory.mktemp("nul"), database_url=postgres_database_url)
    house.refuse(422, name="a\x00b")
    house.refuse(422, dataset="ds_\x00")
    for path in ("/v1/jobs/job_%00", "/v1/jobs?after=%00", "/v1/jobs?status=%00", "/v1/jobs?metadata[%00]=1"):
        assert house.client.get(path).status_code == 422
    house.close()


# ----------------------------------------------------------------------------------------------------------- acceptance


def test_the_resolved_spec_is_echoed_with_every_default(house: House) -> None:
    reply = house.client.post("/v1/jobs", json={"dataset": house.dataset})
    assert reply.status_code == 201
    job = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["spec"] == {
        "name": "",
        "model": "minilm",
        "dataset": house.dataset,
        "task": {"type": "text_classification", "labels": ["delivery", "other", "refund"]},
        "split": {"validation": 0.1, "test": 0.1, "stratify": True, "group_column": None, "seed": None},
        "loss": {"type": "cross_entropy", "label_smoothing": 0.0, "class_weights": None},
        "tuning": {"type": "full", "freeze": []},
        "training": {
            "epochs": 3,
            "max_steps": None,
            "batch_size": 32,
            "sampler": {"type": "shuffle"},
            "augmentation": [],
            "micro_batch_rows": None,
            "max_length": 128,
            "dropout": None,
            "optimizer": {
                "type": "adamw",
                "learning_rate": 1e-4,
                "layer_decay": 1.0,
                "weight_decay": 0.01,
                "beta1": 0.9,
                "beta2": 0.999,
                "epsilon": 1e-8,
            },
            "schedule": {"type": "linear", "warmup": 0.1},
            "max_grad_norm": 1.0,
            "ema_decay": None,
            "precision": "auto",
            "compile": False,
            "early_stopping": None,
            "checkpoint_every_seconds": 60.0,
            "seed": 17,
        },
        "evaluation": {"calibrate": "temperature", "thresholds": None},
        "metadata": {},
    }
    assert {key: job[key] for key in ("object", "kind", "status", "model_id", "error", "attempts", "metrics")} == {
        "object": "job",
        "kind": "training",
        "status": "queued",
        "model_id": None,
        "error": None,
        "attempts": 0,
        "metrics": {},
    }
    assert job["created_at"] == pytest.approx(time.time(), abs=60)
    assert house.client.get(f"/v1/jobs/{job['id']}").json() == job


def test_a_loss_may_be_given_by_its_name_alone(house: House) -> None:
    job = house.client.get(f"/v1/jobs/{house.submit(loss='focal')}").json()
    assert job["spec"]["loss"] == {"type": "focal", "gamma": 2.0, "alpha": None}


def test_labels_keep_the_order_that_was_asked_for(house: House) -> None:
    order = ["refund", "other", "delivery"]
    job = house.client.get(f"/v1/jobs/{house.submit(task={'labels': order})}").json()
    assert job["spec"]["task"]["labels"] == order


def test_a_resolved_spec_resolves_to_itself(house: House) -> None:
    first = house.client.get(f"/v1/jobs/{house.submit(tuning={'type': 'frozen'})}").json()["spec"]
    assert first["training"]["optimizer"]["learning_rate"] == 1e-2
    again = house.client.post("/v1/jobs", json=first)
    assert again.json()["spec"] == first


def test_jobs_are_listed_by_what_a_caller_filters_for(house: House) -> None:
    wanted = house.submit(name="wanted", metadata={"team": "自然语言", "run": "7"})
    other = house.submit(metadata={"team": "自然语言"})
    listed = all_items(house.client, "/v1/jobs", **{"metadata[team]": "自然语言", "limit": 1})
    assert [job["id"] for job in listed] == [other, wanted]
    listed = all_items(house.client, "/v1/jobs", **{"metadata[team]": "自然语言", "metadata[run]": "7"})
    assert [(job["id"], job["name"]) for job in listed] == [(wanted, "wanted")]
    assert all_items(house.client, "/v1/jobs", kind="comparison") == []
    assert all_items(house.client, "/v1/jobs", dataset="ds_nowhere") == []
    assert {job["status"] for job in all_items(house.client, "/v1/jobs", status="queued")} == {"queued"}


# ---------------------------------------------------------------------------------------------------------- idempotency


def test_a_repeat_under_the_same_key_returns_the_same_job(house: House) -> None:
    body, key = {"dataset": house.dataset, "name": "once"}, {"Idempotency-Key": "repeat"}
    first, again = (house.client.post("/v1/jobs", json=body, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]


def test_a_key_used_for_another_body_is_refused(house: House) -> None:
    key = {"Idempotency-Key": "reused"}
    first = submit(house.client, {"dataset": house.dataset, "name": "first"}, **key)
    before = house.count_jobs()
    reply = house.client.post("/v1/jobs", json={"dataset": house.dataset, "name": "second"}, headers=key)
    assert reply.status_code == 422
    error = error_of(reply)
    assert (error["param"], error["code"]) == ("Idempotency-Key", "idempotency_key_reused")
    assert first in error["message"]
    assert house.count_jobs() == before


def test_a_refused_request_does_not_use_its_key_up(house: House) -> None:
    key = {"Idempotency-Key": "second thought"}
    bad = house.client.post("/v1/jobs", json={"dataset": "ds_nowhere"}, headers=key)
    assert bad.status_code == 422
    submit(house.client, {"dataset": house.dataset}, **key)


def test_projects_do_not_share_keys(house: House) -> None:
    key = {"Idempotency-Key": "shared"}
    mine = submit(house.client, {"dataset": house.dataset}, **key)
    other = house.client_of_another_project()
    theirs = submit(other, {"dataset": upload(other, tickets(10))}, **key)
    assert mine != theirs


def test_eight_requests_at_once_with_one_key_make_one_job(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    house = House(tmp_path_factory.mktemp("race"), database_url=database_url)

    def post(_number: int) -> str:
        return submit(house.client, {"dataset": house.dataset}, **{"Idempotency-Key": "race"})

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(post, range(8)))) == 1
    assert house.count_jobs() == 1
    house.close()


@pytest.mark.parametrize("answers", ["never", "not at all"])
def test_a_job_is_accepted_at_once_whatever_the_broker_does(
    tmp_path_factory: pytest.TempPathFactory, answers: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:secret@127.0.0.1:{silent.getsockname()[1] if answers == 'never' else 1}/0"
        house = House(tmp_path_factory.mktemp("broker"), broker_url=url)
        for _ in range(2):
            started = time.monotonic()
            job = house.submit()
            assert time.monotonic() - started < 20
            assert house.status(job) == "queued"
        ready = house.client.get("/readyz")
        assert (ready.status_code, ready.json()["parts"]["broker"]) == (200, "unreachable")
        house.close()


# --------------------------------------------------------------------------------------------------------------- wishes


def test_a_queued_job_is_cancelled_at_once(house: House) -> None:
    job = house.submit()
    assert house.act(job, "cancel", 202) == "cancelled"
    assert house.client.get(f"/v1/jobs/{job}").json()["finished_at"] is not None
    for verb in ("cancel", "pause", "resume"):
        assert house.act(job, verb, 409)["code"] == "illegal_transition"


def test_a_queued_job_is_paused_and_resumed_at_once(house: House) -> None:
    job = house.submit()
    assert house.act(job, "resume", 409)["type"] == "conflict_error"
    assert house.act(job, "pause", 202) == "paused"
    assert house.act(job, "pause", 202) == "paused"
    assert house.act(job, "resume", 202) == "queued"
    house.claim(job)


def test_a_paused_job_can_be_cancelled(house: House) -> None:
    job = house.submit()
    house.act(job, "pause", 202)
    assert house.act(job, "cancel", 202) == "cancelled"
    told = [event["data"] for event in events_of(house.client, job) if event["type"] == "status"]
    assert told[1:] == [{"reason": reason, "cause": "requested"} for reason in ("paused", "cancelled")]


def test_a_running_job_shows_the_wish_until_its_worker_carries_it_out(house: House) -> None:
    job = house.submit()
    claim = house.claim(job)
    assert house.status(job) == "running"
    assert house.act(job, "resume", 409)["code"] == "illegal_transition"
    assert house.act(job, "pause", 202) == "pausing"
    assert house.act(job, "pause", 202) == "pausing"
    assert house.act(job, "resume", 202) == "running"
    assert house.act(job, "pause", 202) == "pausing"
    house.release(claim)
    assert house.status(job) == "paused"
    assert house.act(job, "resume", 202) == "queued"


def test_a_cancel_of_a_running_job_cannot_be_taken_back(house: House) -> None:
    job = house.submit()
    claim = house.claim(job)
    house.act(job, "pause", 202)
    assert house.act(job, "cancel", 202) == "cancelling"
    assert house.act(job, "cancel", 202) == "cancelling"
    for verb in ("pause", "resume"):
        assert "cancelling" in house.act(job, verb, 409)["message"]
    house.release(claim)
    assert house.status(job) == "cancelled"


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_job_that_ended_takes_no_wishes(house: House, status: str) -> None:
    job = house.submit()
    error = {"message": "m", "type": "job_error", "param": None, "code": "c"}
    house.finish(house.claim(job), status=status, error=error if status == "failed" else None)
    for verb in ("cancel", "pause", "resume"):
        assert status in house.act(job, verb, 409)["message"]
    assert house.client.get(f"/v1/jobs/{job}").json()["error"] == (error if status == "failed" else None)


def test_a_dataset_in_use_is_kept_until_its_job_has_ended(house: House) -> None:
    dataset = upload(house.client, tickets(10))
    job = submit(house.client, {"dataset": dataset})
    refused = house.client.delete(f"/v1/datasets/{dataset}")
    assert refused.status_code == 409
    assert job in error_of(refused)["message"]
    house.act(job, "cancel", 202)
    assert house.client.delete(f"/v1/datasets/{dataset}").status_code == 204


# -------------------------------------------------------------------------------------------------- keys and projects


@pytest.mark.parametrize("secret", [None, "mk_wrong", "é"])
def test_every_job_route_asks_for_a_key(house: House, secret: str | None) -> None:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}".encode()}
    for method, path in _job_routes(house, house.submit()):
        reply = house.client_with(None).request(method, path, headers=headers)
        assert reply.status_code == 401, (method, path)
        assert reply.headers["www-authenticate"] == "Bearer"
        error = error_of(reply)
        assert error["type"] == "authentication_error"
        assert error["code"] == ("missing_api_key" if secret is None else "invalid_api_key")


def test_another_projects_job_is_not_found_by_any_route(house: House) -> None:
    other = house.client_of_another_project()
    job = house.submit()
    before = house.client.get(f"/v1/jobs/{job}").json()
    routes = [(method, path) for method, path in _job_routes(house, job) if job in path]
    assert len(routes) >= 7
    for method, path in routes:
        reply = other.request(method, path)
        assert (reply.status_code, error_of(reply)["code"]) == (404, "job_not_found"), (method, path)
    assert all_items(other, "/v1/jobs") == []
    assert house.client.get(f"/v1/jobs/{job}").json() == before


def _job_routes(house: House, job: str) -> list[tuple[str, str]]:
    return [
        (method.upper(), path.replace("{job_id}", job).replace("{checkpoint_id}", "ckpt_none"))
        for path, operations in house.app.openapi()["paths"].items()
        if path.startswith("/v1/jobs")
        for method in operations
    ]


# ------------------------------------------------------------------------------------------------------- pages, streams


@pytest.mark.parametrize(
    ("path", "after"),
    [
        *(("/events", after) for after in ("1", "evt_", "evt_x", "evt_-1", "evt_²", "evt_٣", f"evt_{'9' * 20}", "%00")),
        *(("/metrics", after) for after in ("x", "@1", "train/loss@", "train/loss@²", f"train/loss@{'9' * 30}")),
    ],
)
def test_a_cursor_that_is_none_is_refused(house: House, path: str, after: str) -> None:
    reply = house.client.get(f"/v1/jobs/{house.submit()}{path}", params={"after": after})
    assert reply.status_code == 422
    error = error_of(reply)
    assert (error["param"], error["code"]) == ("after", "invalid_cursor")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/{job}/events", "/v1/jobs/{job}/checkpoints", "/v1/models"])
@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up"])
def test_a_page_that_cannot_be_is_refused(house: House, path: str, query: str) -> None:
    reply = house.client.get(f"{path.format(job=house.submit())}?{query}")
    assert reply.status_code == 422
    assert error_of(reply)["param"] == query.partition("=")[0]


@pytest.mark.parametrize("after", ["production", "ß", "%00", "x" * 1000, "pred_01a2063b7b31f7d8fa954c8439f29ead"])
@pytest.mark.parametrize(
    "path",
    [
        *("/v1/jobs", "/v1/jobs/{job}/checkpoints", "/v1/models", "/v1/datasets"),
        *("/v1/aliases", "/v1/keys", "/v1/projects", "/v1/audit"),
    ],
)
def test_a_cursor_that_is_no_id_of_the_lists_kind_is_refused(house: House, path: str, after: str) -> None:
    reply = house.client.get(path.format(job=house.submit()), params={"after": after})
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (422, "after", "invalid_cursor")


def test_a_cursor_whose_item_is_gone_goes_on_where_it_stood(house: House) -> None:
    jobs = [house.submit() for _ in range(3)]
    after = f"{jobs[1]}g"  # just behind the second
    listed = house.client.get("/v1/jobs", params={"after": after}).json()["data"]
    assert [job["id"] for job in listed][:2] == [jobs[1], jobs[0]]


def test_events_metrics_and_checkpoints_come_in_pages(house: House) -> None:
    job = house.submit()
    claim = house.claim(job)
    with house.database.write() as session:
        repository.append_events(session, job, [Event("message", f"m{i}", {"i": i}) for i in range(25)])
        rows = [
            {"name": name, "step": step, "value": 0.5, "created_at": 1.0}
            for name in ("train/loss", "validation/accuracy")
            for step in (1, 2, 10)
        ]
        repository.put_metrics(session, job, rows)
        for step in (1, 2, 3):
            row = CheckpointRow(
                id=f"ckpt_{step}_{job}",
                job_id=job,
                fence=claim.fence,
                step=step,
                epoch=1.0,
                folder="f",
                bytes=5,
                sha256="s",
                metrics={},
                created_at=1.0,
            )
            repository.add_checkpoint(session, claim, row, [])
    events = all_items(house.client, f"/v1/jobs/{job}/events", limit=4)
    assert [event["id"] for event in events] == [f"evt_{n:012d}" for n in range(1, 28)]
    assert [event["type"] for event in events[:3]] == ["status", "status", "message"]
    assert set(events[0]) == {"id", "object", "created_at", "level", "type", "message", "data"}
    newest = house.client.get(f"/v1/jobs/{job}/events", params={"order": "desc", "limit": 1}).json()
    assert (newest["data"], newest["has_more"]) == (events[-1:], True)

    metrics = all_items(house.client, f"/v1/jobs/{job}/metrics", limit=2)
    assert [(one["name"], one["step"]) for one in metrics] == [(row["name"], row["step"]) for row in rows]
    one_series = all_items(house.client, f"/v1/jobs/{job}/metrics", name="train/loss", limit=2)
    assert [one["step"] for one in one_series] == [1, 2, 10]
    assert {one["object"] for one in metrics} == {"job.metric"}

    checkpoints = all_items(house.client, f"/v1/jobs/{job}/checkpoints", limit=2)
    assert [one["step"] for one in checkpoints] == [1, 2, 3]
    assert checkpoints[0] == {
        "id": f"ckpt_1_{job}",
        "object": "checkpoint",
        "job_id": job,
        "step": 1,
        "epoch": 1.0,
        "metrics": {},
        "bytes": 5,
        "sha256": "s",
        "created_at": 1.0,
    }


def test_a_stream_tells_the_rest_of_the_story_and_ends_with_the_job(house: House) -> None:
    job = house.submit()
    house.finish(house.claim(job), status="succeeded")
    stream = {"Accept": "text/event-stream"}
    whole = house.client.get(f"/v1/jobs/{job}/events", headers=stream)
    assert whole.headers["content-type"].startswith("text/event-stream")
    told = _parse_stream(whole.text)
    pages = all_items(house.client, f"/v1/jobs/{job}/events")
    assert [one["data"] for one in told] == pages
    assert [(one["id"], one["event"]) for one in told] == [(event["id"], event["type"]) for event in pages]

    rest = house.client.get(f"/v1/jobs/{job}/events", headers={**stream, "Last-Event-ID": pages[0]["id"]})
    assert [one["data"] for one in _parse_stream(rest.text)] == pages[1:]
    same = house.client.get(f"/v1/jobs/{job}/events", headers=stream, params={"after": pages[0]["id"]})
    assert same.text == rest.text
    after_all = house.client.get(f"/v1/jobs/{job}/events", headers={**stream, "Last-Event-ID": pages[-1]["id"]})
    assert (after_all.status_code, after_all.content) == (204, b"")


def test_a_stream_ends_with_the_key_it_was_opened_with(house: House) -> None:
    job = house.submit()
    key = house.client.post("/v1/keys", json={"name": "watcher", "scopes": ["jobs"]}).json()
    watcher = house.client_with(key["secret"])

    def has_begun() -> bool:
        house.services.keys.note_uses()
        return house.client.get(f"/v1/keys/{key['id']}").json()["last_used_at"] is not None

    with ThreadPoolExecutor(1) as watching:
        stream = watching.submit(watcher.get, f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"})
        try:
            wait_until(has_begun, 10)
            house.client.delete(f"/v1/keys/{key['id']}")
            assert stream.result(timeout=10).headers["content-type"].startswith("text/event-stream")
        finally:
            house.act(job, "cancel", 202)


def _parse_stream(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            events.append({**fields, "data": json.loads(fields["data"])})
    return events


# ------------------------------------------------------------------------------------------------------------- estimate


def test_an_estimate_has_a_time_once_a_training_like_it_has_ended(house: House) -> None:
    def estimate() -> dict[str, Any]:
        reply = house.client.post("/v1/jobs/validate", json={"dataset": house.dataset, "training": {"epochs": 4}})
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()["estimate"]
        return found

    assert estimate()["seconds"] is None
    claim = house.claim(house.submit())
    values = [{"name": "train/tokens_per_second", "step": 1, "value": 250.0, "created_at": 0.0}]
    with house.database.write() as session:
        repository.put_metrics(session, claim.job_id, values)
    house.finish(claim, status="succeeded")
    after = estimate()
    assert after["seconds"] == pytest.approx(4 * after["tokens_per_epoch"] / 250)


def test_a_step_that_cannot_be_cut_and_would_not_fit_is_refused_where_the_limit_is_known(
    house: House, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec: dict[str, Any] = {
        "loss": {"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]},
        "training": {"max_length": 512},
    }
    limited = House(tmp_path_factory.mktemp("limited"), trainer_memory_bytes=6_000_000_000)
    error = limited.refuse(422, **spec)
    assert (error["param"], error["code"]) == ("/training/batch_size", "too_much_memory")
    assert "the limit is 6.0 GB. Lower batch_size to " in error["message"]
    limited.close()
    of_a_gpu = House(tmp_path_factory.mktemp("gpu"), trainer_memory_bytes=6_000_000_000, training_queue="gpu")
    for open_house in (house, of_a_gpu):
        job = open_house.client.get(f"/v1/jobs/{open_house.submit(**spec)}").json()
        assert any("'supcon' couples the 32 rows of a step" in warning for warning in job["warnings"])
    of_a_gpu.close()


def test_a_model_to_train_further_that_is_not_there_is_pointed_at(house: House) -> None:
    error = house.refuse(422, model="mdl_nothing")
    assert (error["param"], error["code"]) == ("/model", "model_not_found")


def test_a_key_of_metadata_that_is_given_two_values_is_refused(house: Any) -> None:
    reply = house.client.get("/v1/jobs?metadata[team]=a&metadata[team]=b")
    assert (reply.status_code, error_of(reply)["param"]) == (422, "metadata[team]")
    assert house.client.get("/v1/jobs?metadata[team]=a&metadata[team]=a").status_code == 200
