"""Calls that make no sense are refused, and nobody else notices."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.app.predictions.house import House
from tests.service import error_of

GOOD = ["where is my parcel", "I want my money back", "hello there"]


def bad(model: str) -> dict[str, tuple[bytes, set[int]]]:
    """Bodies, and how each is refused."""

    def body(**given: object) -> bytes:
        return json.dumps({"model": model, "input": GOOD[0], **given}).encode()

    return {
        "a text of 1 MB": (body(input="x" * 1_000_000), {413, 422}),
        "10,000 texts": (body(input=["money"] * 10_000), {422}),
        "NaN": (f'{{"model": "{model}", "input": NaN}}'.encode(), {400, 422}),
        "half of a surrogate pair": (f'{{"model": "{model}", "input": "\\ud800"}}'.encode(), {422}),
        "a model that is not there": (body(model="mdl_nowhere"), {404}),
        "no JSON": (b"{", {400}),
        "an empty text": (body(input=["money", " "]), {422}),
    }


def test_good_calls_between_bad_ones_are_all_answered_and_right(house: House) -> None:
    expected = house.predict(GOOD)
    refused = list(bad(house.model).values())
    headers = {"content-type": "application/json"}

    def call_well(i: int) -> None:
        (result,) = house.predict(GOOD[i % len(GOOD)])
        assert result["scores"] == pytest.approx(expected[i % len(GOOD)]["scores"], abs=1e-5)

    def call_badly(i: int) -> None:
        body, statuses = refused[i % len(refused)]
        reply = house.client.post("/v1/predictions", content=body, headers=headers)
        assert reply.status_code in statuses, reply.text
        assert len(error_of(reply)["message"]) < 1_000

    with ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(call, i) for i in range(4 * len(refused)) for call in (call_well, call_badly)]
        for call in calls:
            call.result()
