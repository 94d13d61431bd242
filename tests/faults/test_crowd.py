"""More callers at once than the server can answer: each is told so or answered, once and right, and none fails."""

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from tests.faults.site import Site
from tests.service import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.proof

CALLERS = 10_000
TEXTS = ["where is my parcel", "I want my money back", "hello there", "parcel parcel money", "the courier was late"]


class Caller(asyncio.Protocol):
    """One connection, which asks once and keeps all that comes."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.received = b""
        self.replied = asyncio.Event()
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.is_whole:
            self.replied.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self.replied.set()

    @property
    def head(self) -> list[bytes]:
        return self.received.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")

    @property
    def body(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def is_whole(self) -> bool:
        lengths = [int(line.partition(b":")[2]) for line in self.head if line.startswith(b"content-length:")]
        return bool(lengths) and len(self.body) >= lengths[0]

    @property
    def status(self) -> int:
        """0 where nothing came."""
        return int(self.received.split(b" ", 2)[1]) if self.received else 0


async def call_at_once(client: httpx.Client, model: str, leaving: Sequence[int] = ()) -> list[Caller]:
    """Connect all callers, let all ask, and wait until each that stays has a reply, and a moment for a second one."""
    address, key = urlsplit(str(client.base_url)), client.headers["authorization"]
    loop, some = asyncio.get_running_loop(), asyncio.Semaphore(500)

    async def connect(place: int) -> Caller:
        async with some:
            _, caller = await loop.create_connection(lambda: Caller(place), address.hostname, address.port)
            return caller

    callers = await asyncio.gather(*(connect(place) for place in range(CALLERS)))
    for caller in callers:
        body = json.dumps({"model": model, "input": TEXTS[caller.place % len(TEXTS)]})
        caller.transport.write(
            f"POST /v1/predictions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
    for place in leaving:
        callers[place].transport.close()
    await asyncio.gather(*(caller.replied.wait() for caller in callers))
    await asyncio.sleep(1)
    for caller in callers:
        caller.transport.close()
    return callers


@pytest.mark.row("10,000 predictions at once", runs=4, is_watched=False)
@pytest.mark.parametrize("leaving", [range(0), range(0, CALLERS, 3)], ids=["all stay", "a third leaves"])
def test_of_ten_thousand_at_once_each_is_answered_or_refused_once_and_right(site: Site, leaving: range) -> None:
    allow_open_files(CALLERS + 1_000)
    (model, *_) = (one["id"] for one in site.client.get("/v1/models?order=asc").json()["data"])
    expected = [ask(site.client, model, text) for text in TEXTS]
    before = outcomes(site.client)
    callers = uvloop.run(call_at_once(site.client, model, leaving))
    staying = [caller for caller in callers if caller.place not in leaving]
    counts = Counter(caller.status for caller in staying)
    assert set(counts) <= {200, 429}, counts
    assert counts[200] > 0
    ids = set()
    for caller in staying:
        reply = json.loads(caller.body)  # which fails where there is less than one, or more
        if caller.status == 429:
            assert reply["error"]["code"] == "too_many_waiting"
            assert any(line.startswith(b"retry-after:") for line in caller.head)
        else:
            (result,) = reply["results"]
            assert (reply["model"], result["scores"]) == (model, pytest.approx(expected[caller.place % 5], abs=1e-5))
            ids.add(reply["id"])
    assert len(ids) == counts[200]

    def grown() -> Counter[str]:
        return outcomes(site.client) - before

    wait_until(lambda: grown().total() >= CALLERS - len(leaving), PATIENCE_SECONDS, lambda: str(grown()))
    assert grown()["failed"] == grown()["invalid"] == 0
    assert grown()["answered"] >= counts[200]
    assert metric(site.client, "minimand_texts_waiting") == 0
    assert ask(site.client, model, TEXTS[0]) == pytest.approx(expected[0], abs=1e-5)


def allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{count:,} open files are needed, and {hard:,} are allowed")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def ask(client: httpx.Client, model: str, text: str) -> dict[str, float]:
    (result,) = (
        client.post("/v1/predictions", json={"model": model, "input": text}).raise_for_status().json()["results"]
    )
    scores: dict[str, float] = result["scores"]
    return scores


def metric(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").raise_for_status().text.splitlines()
    (value,) = (line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == series)
    return float(value)


def outcomes(client: httpx.Client) -> Counter[str]:
    """Calls for predictions, by what came of them."""
    names = ("answered", "refused", "invalid", "left", "failed")
    return Counter({name: int(metric(client, f'minimand_predictions_total{{outcome="{name}"}}')) for name in names})
