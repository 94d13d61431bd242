"""Predictions over HTTP: what cannot be classified is refused with its place, and a model answers while it exists."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.db.tables import ModelRow
from app.predictions.schemas import Prediction
from app.predictions.served import MEMORY_SECONDS
from ml.inference.backends import OnnxEngine
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier
from ml.inference.cost import PassCost
from ml.inference.scheduler import Row
from tests.app.predictions.house import House
from tests.service import error_of

TEXT = "where is my parcel"
LABELS = {"delivery", "other", "refund"}


# -------------------------------------------------------------------------------------------------------------- answers


def test_each_text_is_answered_with_every_labels_probability(house: House) -> None:
    (result,) = house.predict(TEXT)
    assert set(result) == {"label", "score", "scores"}
    assert set(result["scores"]) == LABELS
    assert sum(result["scores"].values()) == pytest.approx(1)
    assert result["score"] == max(result["scores"].values()) == result["scores"][result["label"]]


def test_answers_come_in_the_order_of_the_texts_and_do_not_depend_on_the_company(house: House) -> None:
    texts = ["money " * 40, "a", "parcel late", "courier " * 20, "?", "文字", "\u0000", "a" * 100_000, "🙂 ok"]
    together = house.predict(texts)
    for text, result in zip(texts, together, strict=True):
        (alone,) = house.predict(text)
        assert alone["scores"] == pytest.approx(result["scores"], abs=1e-5)


def test_a_list_holds_up_to_1024_texts(house: House) -> None:
    assert len(house.predict([TEXT] * 1024)) == 1024


def test_a_pair_is_read_as_two_texts(house: House) -> None:
    pairs = [{"text": "money", "text_pair": "parcel"}, {"text": "parcel", "text_pair": "money"}]
    pair, turned = house.predict(pairs, house.copy_model(takes_pairs=True))
    assert pair["scores"] != turned["scores"]


def test_a_model_of_single_texts_takes_no_pair_and_one_of_pairs_no_single_text(house: House) -> None:
    pair = {"text": TEXT, "text_pair": TEXT}
    of_pairs = house.copy_model(takes_pairs=True)
    for model, given, param, code in [
        (house.model, pair, "/input", "single_text_expected"),
        (house.model, [TEXT, pair], "/input/1", "single_text_expected"),
        (of_pairs, TEXT, "/input", "pair_expected"),
        (of_pairs, [pair, TEXT], "/input/1", "pair_expected"),
    ]:
        error = house.refuse(422, model=model, input=given)
        assert (error["param"], error["code"]) == (param, code)


def test_a_prediction_says_what_it_is_and_how_long_it_took(house: House) -> None:
    body = house.client.post("/v1/predictions", json={"model": house.model, "input": TEXT}).json()
    assert (body["object"], body["model"], body["id"][:5]) == ("prediction", house.model, "pred_")
    assert all(took >= 0 for took in body["timings_ms"].values())
    assert set(body["timings_ms"]) == {"queue", "tokenize", "inference"}
    assert Prediction.model_validate(body, strict=True, extra="forbid").model_dump(exclude_none=True) == body


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_jobs_id_is_no_model_and_the_reply_says_where_to_look(house: House) -> None:
    error = house.refuse(404, model=house.job, input=TEXT)
    assert (error["param"], error["code"]) == ("/model", "model_not_found")
    assert "That is a job's id: its model_id names the model, once it has succeeded." in error["message"]


@pytest.mark.parametrize("model", ["mdl_nowhere", "minilm", "../../etc/passwd", "https://x.example", "\x00"])
def test_an_unknown_model_is_not_found(house: House, model: str) -> None:
    error = house.refuse(404, model=model, input=TEXT)
    assert (error["param"], error["code"]) == ("/model", "model_not_found")


_REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no input": ({}, "/input", "missing_field"),
    "null": ({"input": None}, "/input", "invalid_value"),
    "an empty list": ({"input": []}, "/input", "no_input"),
    "an empty text": ({"input": ""}, "/input", "empty_text"),
    "a blank text": ({"input": " \n\t\u3000"}, "/input", "empty_text"),
    "an empty text in a list": ({"input": [TEXT, ""]}, "/input/1", "empty_text"),
    "an empty second text": ({"input": {"text": TEXT, "text_pair": ""}}, "/input", "empty_text"),
    "1,025 texts": ({"input": [TEXT] * 1025}, "/input", "too_many_texts"),
    "a number": ({"input": 7}, "/input", "invalid_value"),
    "a number in a list": ({"input": [TEXT, 7]}, "/input/1", "invalid_value"),
    "a list in a list": ({"input": [[TEXT]]}, "/input/0", "invalid_value"),
    "true": ({"input": True}, "/input", "invalid_value"),
    "half a pair": ({"input": {"text": TEXT}}, "/input/text_pair", "missing_field"),
    "a pair with more": ({"input": {"text": TEXT, "text_pair": TEXT, "third": TEXT}}, "/input/third", "unknown_field"),
    "a text too long": ({"input": "x" * 100_001}, "/input", "invalid_value"),
    "an unknown field": ({"input": TEXT, "top": 3}, "/top", "unknown_field"),
    "no model": ({"input": TEXT, "model": None}, "/model", "invalid_value"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_classified_is_refused_with_its_place(house: House, name: str) -> None:
    body, param, code = _REFUSED[name]
    error = house.refuse(422, **body)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert len(error["message"]) < 1_000


@pytest.mark.parametrize(
    "given", [r'"\ud800"', r'["ok", "a \udfff b"]', r'{"text": "ok", "text_pair": "\ud83d"}', r'"\udc00\ud800"']
)
def test_half_of_a_surrogate_pair_is_refused(house: House, given: str) -> None:
    error = house.refuse(422, content=f'{{"model": "{house.model}", "input": {given}}}')
    assert error["param"].startswith("/input")


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '"text"'])
def test_a_body_that_is_no_request_is_refused(house: House, raw: str) -> None:
    house.refuse(400 if raw == "{" else 422, content=raw)


def test_a_body_that_is_too_large_is_not_read(house: House) -> None:
    assert house.refuse(413, input=["x" * 10_000] * 200)["code"] == "body_too_large"


# ------------------------------------------------------------------------------------------ many, and those who leave


class Gate:
    """A network whose pass lasts until it is opened."""

    session, cost = "gate", PassCost(fixed=1, token=0, square=0)

    def __init__(self) -> None:
        self.has_begun, self.is_open = threading.Event(), threading.Event()

    def encode(self, rows: Any, /, *, networks: Any, alone: bool = False) -> np.ndarray:
        self.has_begun.set()
        assert self.is_open.wait(60)
        return np.zeros((len(rows), 1), np.float32)


@contextlib.contextmanager
def held_up(house: House, *, waiting: int = 0) -> Iterator[list[Row]]:
    """While a pass runs that does not end, and so many rows wait. Gives those that wait at the end."""
    gate, scheduler, left = Gate(), house.services.predictions._scheduler, list[Row]()
    futures = [scheduler.submit(gate, ["running"])]
    assert gate.has_begun.wait(10)
    if waiting:
        futures.append(scheduler.submit(gate, ["waiting"] * waiting))
    try:
        yield left
        left += scheduler._waiting
    finally:
        gate.is_open.set()
        for future in futures:
            future.result(10)


def test_texts_beyond_those_that_may_wait_are_refused_whole_and_told_when_to_come_again(house: House) -> None:
    house.predict(TEXT)
    with held_up(house, waiting=house.settings.max_waiting_texts - 1):
        reply = house.client.post("/v1/predictions", json={"model": house.model, "input": [TEXT] * 2})
    error = error_of(reply)
    assert (reply.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "too_many_waiting")
    assert int(reply.headers["retry-after"]) >= 1
    assert "2047 texts wait for their model, and at most 2048 may" in error["message"]
    house.predict([TEXT] * 2)


def test_texts_of_a_client_that_left_are_taken_back(house: House) -> None:
    house.predict(TEXT)
    scheduler = house.services.predictions._scheduler
    body = json.dumps({"model": house.model, "input": TEXT}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {house.secret}"}
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/predictions",
        "query_string": b"", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        while not scheduler._waiting:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        """Nobody hears it."""

    with held_up(house) as left:
        asyncio.run(asyncio.wait_for(house.app(scope, receive, send), 30))
    (row,) = left
    assert row.request.future.cancelled()
    house.predict(TEXT)


def test_a_pass_that_fails_is_a_500_and_the_next_one_is_answered(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.predict(TEXT)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the network failed")

    with monkeypatch.context() as patch:
        patch.setattr(OnnxClassifier, "encode", fail)
        assert house.refuse(500, input=TEXT)["code"] == "internal_error"
    assert "the network failed" in caplog.text
    house.predict(TEXT)


# ------------------------------------------------------------------------------------------- models that come and go


def test_a_model_that_fell_out_of_the_cache_is_loaded_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [house.model, *(house.copy_model() for _ in range(3))]
    house.predict(TEXT)
    monkeypatch.setattr(house.services.served._cache._models, "_max_bytes", 0)  # the newest alone stays
    first = [house.predict(TEXT, model) for model in models]
    again = [house.predict(TEXT, model) for model in reversed(models)]
    assert all(answer == first[0] for answer in first + again)


def test_many_callers_at_once_each_get_their_models_answer(house: House) -> None:
    models = [house.model, *(house.copy_model() for _ in range(2))]
    (expected,) = house.predict(TEXT)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: house.predict(TEXT, models[number % 3]), range(48)))
    for (answer,) in answers:
        assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_a_deleted_model_is_gone_at_once(house: House) -> None:
    model = house.copy_model()
    house.predict(TEXT, model)
    assert house.client.delete(f"/v1/models/{model}").status_code == 204
    assert house.refuse(404, model=model, input=TEXT)["code"] == "model_not_found"
    house.predict(TEXT)


def test_a_model_deleted_by_another_process_is_gone_after_a_moment(house: House) -> None:
    model = house.copy_model()
    house.predict(TEXT, model)
    with house.database.write() as session:
        session.delete(session.get_one(ModelRow, model))
    time.sleep(MEMORY_SECONDS + 0.1)
    house.refuse(404, model=model, input=TEXT)


def test_a_model_whose_answers_changed_is_not_served(house: House) -> None:
    model = house.copy_model()
    file = house.services.models._store.local_path(f"copies/{model}") / "minimand.json"
    description = json.loads(file.read_text())
    description["probe"]["logits"][0][0] += 0.01
    file.write_text(json.dumps(description))
    error = house.refuse(503, model=model, input=TEXT)
    assert error["code"] == "model_unfit"
    assert "is not what was written" in error["message"]


def test_another_projects_model_is_not_found_even_while_it_is_loaded(house: House) -> None:
    house.predict(TEXT)
    other = house.client_of_another_project()
    for reply in (
        other.post("/v1/predictions", json={"model": house.model, "input": TEXT}),
        other.get(f"/v1/models/{house.model}"),
        other.get(f"/v1/models/{house.model}/report"),
        other.get(f"/v1/models/{house.model}/download"),
        other.delete(f"/v1/models/{house.model}"),
    ):
        assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")
    assert other.get("/v1/models").json()["data"] == []
    house.predict(TEXT)


def test_a_key_is_asked_for(house: House) -> None:
    reply = house.client_with(None).post("/v1/predictions", json={"model": house.model, "input": TEXT})
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


_ASK = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from app.main import create_app
from app.settings import Settings
home, model = Path(sys.argv[1]), sys.argv[2]
key = (home / "admin.key").read_text().strip()
client = TestClient(create_app(Settings(home=home)), headers={"Authorization": "Bearer " + key})
reply = client.post("/v1/predictions", json={"model": model, "input": ["ok", "fine"]})
assert reply.status_code == 200, reply.text
print(*sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_answering_loads_neither_torch_nor_transformers(house: House) -> None:
    command = [sys.executable, "-c", _ASK, str(house.settings.home), house.model]
    assert subprocess.check_output(command, text=True).strip() == ""


def test_a_load_that_failed_is_tried_again(tmp_path: Path, house: House) -> None:
    def fail() -> tuple[Path, Path]:
        raise FileNotFoundError(tmp_path)

    cache = ModelCache(0, OnnxEngine(1))
    with pytest.raises(FileNotFoundError):
        cache.get("mdl_x", fail)
    assert cache.peek("mdl_x") is None
    with house.database.read() as session:
        folders = house.services.models.folders(session.get_one(ModelRow, house.model))
    assert cache.get("mdl_x", lambda: folders).description.task.labels == sorted(LABELS)
