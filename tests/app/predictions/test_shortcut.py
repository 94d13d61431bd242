"""A call in order is answered by the short way, as the route answers it; every other reaches the route whole."""

import asyncio
import json
from typing import Any

import pytest

from app.http.metrics import Metrics
from app.keys.caller import Caller
from app.limits.rates import RateBuckets
from app.limits.schemas import Limits
from app.limits.service import LimitService
from app.predictions.shortcut import PATH, PredictionShortcut
from tests.app.predictions.house import House

TIMINGS = {"queue": 0.1, "tokenize": 0.2, "inference": 3.0}
KEY, BODY = "mk_known", b'{"model": "mdl_1", "input": "Where is my parcel?"}'


CALLERS = {
    KEY: Caller("key_1", "key_1", "proj_1", frozenset({"predict"})),
    "mk_without_the_scope": Caller("key_2", "key_2", "proj_1", frozenset({"jobs"})),
    "mk_with_a_rate": Caller("key_3", "key_3", "proj_1", frozenset({"predict"}), {"predictions_per_minute": 5}),
    "mk_of_a_project_with_one": Caller(
        "key_4", "key_4", "proj_2", frozenset({"predict"}), project_limits={"predictions_per_minute": 5}
    ),
}


class Keys:
    """Knows some keys."""

    def recall(self, secret: str) -> Caller | None:
        return CALLERS.get(secret)


class Predictions:
    """Answers who asked for what."""

    async def predict(self, caller: Caller, asked: Any) -> dict[str, Any]:
        return {"caller": caller.key_id, "model": asked.model, "input": asked.input, "timings_ms": TIMINGS}


def headers(**given: str | None) -> list[tuple[bytes, bytes]]:
    named = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "content-length": "9"} | {
        name.replace("_", "-"): value for name, value in given.items()
    }
    return [(name.encode(), value.encode()) for name, value in named.items() if value is not None]


def call(*parts: bytes, **scope: Any) -> tuple[list[dict[str, Any]], bytes | None]:
    """What is sent for a body that comes in parts; and what the application behind read, where it was asked."""
    messages = [
        {"type": "http.request", "body": part, "more_body": place < len(parts) - 1} for place, part in enumerate(parts)
    ]
    sent: list[dict[str, Any]] = []
    seen: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    async def behind(_scope: Any, receive: Any, _send: Any) -> None:
        body, is_more = b"", True
        while is_more:
            message = await receive()
            body, is_more = body + message["body"], message["more_body"]
        seen.append(body)

    shortcut = PredictionShortcut(
        behind,
        keys=Keys(),  # type: ignore[arg-type]
        predictions=Predictions(),  # type: ignore[arg-type]
        limits=LimitService(RateBuckets(None), Limits()),
        metrics=Metrics("0"),
        max_body_bytes=1000,
    )
    whole = {"type": "http", "path": PATH, "method": "POST", "headers": headers()} | scope
    asyncio.run(asyncio.wait_for(shortcut(whole, receive, send), 10))
    return sent, seen[0] if seen else None


def test_a_call_in_order_is_answered_without_the_application_behind() -> None:
    (start, body), seen = call(BODY[:20], BODY[20:])
    assert seen is None
    assert start["status"] == 200
    assert json.loads(body["body"]) == {
        "caller": "key_1",
        "model": "mdl_1",
        "input": "Where is my parcel?",
        "timings_ms": TIMINGS,
    }
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()


@pytest.mark.parametrize(
    ("scope", "body"),
    [
        ({"method": "GET"}, BODY),
        ({"path": PATH + "/"}, BODY),
        ({"headers": headers(authorization="Bearer mk_other")}, BODY),
        *(({"headers": headers(authorization=f"Bearer {key}")}, BODY) for key in CALLERS if key != KEY),
        ({"headers": headers(authorization=f"Basic {KEY}")}, BODY),
        ({"headers": headers(authorization=None)}, BODY),
        ({"headers": headers(content_type="text/plain")}, BODY),
        ({"headers": headers(content_length=None)}, BODY),
        ({"headers": headers(content_length="1001")}, BODY),
        ({}, b'{"model": '),
        ({}, b'{"model": "mdl_1", "input": 7}'),
        ({}, b'{"model": "mdl_1", "input": "\\ud800"}'),
    ],
)
def test_any_other_call_reaches_the_application_behind_as_it_came(scope: dict[str, Any], body: bytes) -> None:
    sent, seen = call(body[:5], body[5:], **scope)
    assert (sent, seen) == ([], body)


def test_both_ways_answer_the_same(house: House) -> None:
    body = json.dumps({"model": house.model, "input": ["Where is my parcel?", "I want my money back."]})
    house.client.get("/v1/models")  # the key is known now
    replies = [
        house.client.post("/v1/predictions", content=body, headers={"content-type": kind})
        for kind in ("application/json", "application/json; charset=utf-8")
    ]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].json()["results"] == replies[1].json()["results"]
    assert all(reply.headers["x-request-id"].startswith("req_") for reply in replies)
    assert replies[0].headers["content-type"] == replies[1].headers["content-type"] == "application/json"
