"""/metrics tells of the predictions of one process, to those who hold a key."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from app.settings import Settings
from ml.inference.classifier import OnnxClassifier
from tests.app.predictions.house import House
from tests.service import error_of, wait_until

TEXT = "where is my parcel"


def samples(house: House) -> dict[str, float]:
    """Every series by its name and labels, as Prometheus writes them."""
    reply = house.client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(reply.text)
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }


class Growth:
    """How far series have grown since this was made: other tests have asked the same house."""

    def __init__(self, house: House) -> None:
        self._house, self._before = house, samples(house)

    def of(self, *names: str) -> list[float]:
        now = samples(self._house)
        return [now[name] - self._before[name] for name in names]


def outcomes(growth: Growth) -> dict[str, float]:
    names = ("answered", "refused", "invalid", "left", "failed")
    values = growth.of(*(f"minimand_predictions_total{{outcome={name}}}" for name in names))
    return {name: value for name, value in zip(names, values, strict=True) if value}


def test_without_a_key_it_tells_nothing(house: House) -> None:
    reply = house.client_with(None).get("/metrics")
    assert reply.status_code == 401
    assert error_of(reply)["code"] == "missing_api_key"


def test_an_answered_call_counts_once_with_its_time_by_stage(house: House) -> None:
    growth = Growth(house)
    timings = house.client.post("/v1/predictions", json={"model": house.model, "input": TEXT}).json()["timings_ms"]
    assert outcomes(growth) == {"answered": 1}
    for stage, milliseconds in timings.items():
        count, seconds = growth.of(
            *(f"minimand_prediction_seconds_{part}{{stage={stage}}}" for part in ("count", "sum"))
        )
        assert count == 1
        assert seconds == pytest.approx(milliseconds / 1000)


def test_a_pass_counts_its_texts_their_tokens_and_their_padding(house: House) -> None:
    house.predict(TEXT)  # loads the model
    classifier = house.services.served._cache.peek(house.model)
    assert classifier is not None
    texts = ["parcel", "where is my parcel and my money"]
    short, long = (len(encoding) for encoding in classifier.tokenize(texts))
    growth = Growth(house)
    house.predict(texts)
    passes, rows, tokens, padding = growth.of(
        "minimand_pass_texts_count",
        "minimand_pass_texts_sum",
        "minimand_pass_tokens_total{kind=text}",
        "minimand_pass_tokens_total{kind=padding}",
    )
    assert (rows, tokens) == (2, short + long)
    assert padding == (long - short if passes == 1 else 0)


@pytest.mark.parametrize("body", [{}, {"input": ""}, {"input": TEXT, "model": "mdl_nowhere"}, {"input": TEXT, "x": 1}])
def test_a_call_that_makes_no_sense_is_invalid(house: House, body: dict[str, Any]) -> None:
    growth = Growth(house)
    house.client.post("/v1/predictions", json={"model": house.model, **body})
    assert outcomes(growth) == {"invalid": 1}


def test_texts_that_wait_are_told_and_a_call_for_which_there_is_no_room_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.predict(TEXT)
    is_open = threading.Event()
    encode = OnnxClassifier.encode

    def wait(*given: Any, **named: Any) -> Any:
        is_open.wait(30)
        return encode(*given, **named)

    monkeypatch.setattr(OnnxClassifier, "encode", wait)
    growth = Growth(house)
    first = threading.Thread(target=house.predict, args=[TEXT])
    second = threading.Thread(target=house.predict, args=[[TEXT] * 7])
    first.start()
    wait_until(lambda: house.services.predictions._scheduler._running, 30)
    second.start()
    wait_until(lambda: samples(house)["minimand_texts_waiting"] == 7, 30)
    house.refuse(422, input=[TEXT] * 1025)
    monkeypatch.setattr(house.services.predictions._scheduler, "_max_rows", 8)
    house.refuse(429, input=[TEXT] * 2)
    is_open.set()
    for caller in (first, second):
        caller.join()
    assert samples(house)["minimand_texts_waiting"] == 0
    assert outcomes(growth) == {"answered": 2, "refused": 1, "invalid": 1}


def test_a_pass_that_fails_is_a_failed_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.predict(TEXT)
    growth = Growth(house)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxClassifier, "encode", lambda *_, **__: 1 / 0)
        house.refuse(500, input=TEXT)
    assert outcomes(growth) == {"failed": 1}


def test_a_client_that_leaves_before_its_body_is_whole_has_left_and_is_no_fault_of_ours(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.predict(TEXT)
    growth = Growth(house)
    headers = {"content-type": "application/json", "content-length": "99", "authorization": f"Bearer {house.secret}"}
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/v1/predictions",
        "query_string": b"", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> dict[str, Any]:
        return messages.pop()

    async def send(_message: Any) -> None:
        """Nobody hears it."""

    asyncio.run(house.app(scope, receive, send))
    assert outcomes(growth) == {"left": 1}
    assert "unhandled" not in caplog.text


def test_loaded_models_are_told_with_their_bytes(house: House) -> None:
    house.predict(TEXT)
    before = samples(house)
    house.predict(TEXT, house.copy_model())
    after = samples(house)
    assert after["minimand_models_loaded"] == before["minimand_models_loaded"] + 1
    assert after["minimand_models_bytes"] > before["minimand_models_bytes"]


def test_two_applications_in_one_process_count_for_themselves(house: House, tmp_path: Path) -> None:
    other = create_app(Settings(home=tmp_path))
    growth = Growth(house)
    other.state.services.metrics.observe_answer({"queue": 0.1, "tokenize": 0.2, "inference": 3.0})
    other.state.services.predictions.close()
    assert outcomes(growth) == {}
