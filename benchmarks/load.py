"""Load for a classifier server: texts of which none comes twice, closed loops of clients by wrk, and arrivals at random
at a given rate. Every reply is handed back with the number of its first text, so that each answer can be checked.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

from benchmarks.data import read_rows
from benchmarks.servers import Server

SCRIPT = Path(__file__).parent / "wrk.lua"
TIMEOUT_SECONDS = 30
# More texts a second than any server on two cores answers.
MOST_PER_SECOND = {"short": 2_000, "mixed": 1_500, "long": 500}


@dataclass(frozen=True)
class Reply:
    """number: of the first of the texts that were asked for."""

    number: int
    status: int
    body: bytes


@dataclass(frozen=True)
class Load:
    """What a load was answered, and how fast. broken: requests that ended without a reply."""

    seconds: float
    p50_ms: float
    p99_ms: float
    broken: int
    replies: list[Reply] = field(repr=False)
    late_ms: float | None = None  # how late the 99th percentile of requests was sent, where they had a time


# --------------------------------------------------------------------------------------------------------------- texts


@cache
def _sentences(kind: str) -> list[str]:
    draw = random.Random(kind)
    if kind == "short":
        found = list(dict.fromkeys(row["text"] for part in ("train", "dev", "test") for row in read_rows("sst2", part)))
    else:
        found = list(dict.fromkeys(row["text"] for row in read_rows("movie_reviews_long", "test")))
    if kind == "mixed":  # half of them sentences, half reviews broken off anywhere within their first 120 words
        some = _sentences("short")[: 10 * len(found)]
        found = some + [" ".join(draw.choice(found).split()[: draw.randint(1, 120)]) for _ in some]
    draw.shuffle(found)
    return found


@cache
def _words() -> list[str]:
    found = sorted({word for text in _sentences("short") for word in text.split() if word.isalpha()})
    random.Random(17).shuffle(found)
    return found


def text(kind: str, number: int) -> str:
    """Real text with a word before it, so that each number has its own. kind: short, long or mixed."""
    sentences, words = _sentences(kind), _words()
    # A text that comes again does so with another word; neighbours have different ones too.
    return f"{words[(number + number // len(sentences)) % len(words)]} {sentences[number % len(sentences)]}"


# ----------------------------------------------------------------------------------------------------------------- wrk


def require_wrk() -> str:
    """The path of wrk; ends the program where it is not there."""
    return shutil.which("wrk") or sys.exit(
        "wrk is not installed. Debian and Ubuntu: apt-get install wrk; macOS: brew install wrk; "
        "elsewhere: https://github.com/wg/wrk, make, and put it on the PATH."
    )


def drive_clients(
    server: Server, kind: str, *, first: int, clients: int, texts: int, seconds: float, scratch: Path
) -> Load:
    """Clients that each wait for a reply before they ask again. texts: in a request. first: number of the first."""
    for place in range(clients):
        numbers = range(first + place * texts, first + int(MOST_PER_SECOND[kind] * seconds), clients * texts)
        lines = (f"{n}\t{json.dumps([text(kind, n + i) for i in range(texts)])}\n" for n in numbers)
        (scratch / str(place)).write_text("".join(lines))
    before, after = server.around()
    command = [require_wrk(), "-s", str(SCRIPT), "-t", str(clients), "-c", str(clients), "-d", f"{seconds:.0f}s"]
    settings = {
        "LOAD_PATH": server.kind.path,
        "LOAD_AUTHORIZATION": server.headers["Authorization"],
        "LOAD_BEFORE": before,
        "LOAD_AFTER": after,
        "LOAD_FOLDER": str(scratch),
    }
    subprocess.run(
        [*command, "--timeout", f"{TIMEOUT_SECONDS}s", server.url],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
    )
    with (scratch / "replies").open("rb") as file:
        told: dict[str, Any] = json.loads(file.readline())
        found = [line.rstrip(b"\n").split(b"\t", 2) for line in file]
    replies = [Reply(int(number), int(status), body) for number, status, body in found]
    return Load(told["seconds"], told["p50_ms"], told["p99_ms"], told["broken"], replies)


# ----------------------------------------------------------------------------------------------------- at a given rate


class _Connection(asyncio.Protocol):
    """One request at a time, kept alive."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.reply: asyncio.Future[tuple[int, bytes]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """Status and body of the reply."""
        self._parser, self._body = httptools.HttpResponseParser(self), bytearray()
        self.reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.reply

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if not self.reply.done():
            self.reply.set_result((self._parser.get_status_code(), bytes(self._body)))

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "reply") and not self.reply.done():
            self.reply.set_exception(error or ConnectionError("closed"))


def drive_rate(server: Server, kind: str, *, first: int, rate: float, seconds: float) -> Load:
    """One text a request, arriving at random (Poisson) whatever has been answered: nobody waits for a turn.

    A request's time counts from when it is written. How late that is, which this machine's load decides and not how
    many requests are out, is told beside it.
    """
    load: Load = uvloop.run(_drive_rate(server, kind, first, rate, seconds))
    return load


async def _drive_rate(server: Server, kind: str, first: int, rate: float, seconds: float) -> Load:
    draw, due, at = random.Random(first), [], 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        due.append(at)
    head = "".join(f"{name}: {value}\r\n" for name, value in server.headers.items())
    requests = []
    for number in range(first, first + len(due)):
        body = server.body([text(kind, number)])
        start = f"POST {server.kind.path} HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\n{head}"
        requests.append(f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    loop = asyncio.get_running_loop()

    async def connect() -> _Connection:
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", server.port)
        return connection

    idle = [await connect() for _ in range(16)]
    taken: list[float] = []
    late: list[float] = []
    replies: list[Reply] = []
    broken = 0

    async def ask(place: int, due_at: float) -> None:
        nonlocal broken
        try:
            while idle and idle[-1].transport.is_closing():  # a server closes what was idle for long
                idle.pop()
            connection = idle.pop() if idle else await connect()
            sent = time.perf_counter()
            status, body = await asyncio.wait_for(connection.send(requests[place]), TIMEOUT_SECONDS)
        except (OSError, TimeoutError):
            broken += 1
            return
        taken.append(time.perf_counter() - sent)
        late.append(sent - due_at)
        replies.append(Reply(first + place, status, body))
        idle.append(connection)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for place, at in enumerate(due):
            await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
            group.create_task(ask(place, begun + at))
    took = time.perf_counter() - begun
    for connection in idle:
        connection.transport.close()
    if not taken:
        return Load(took, 0.0, 0.0, broken, replies)
    p50, p99, late_ms = (float(1000 * np.quantile(*each)) for each in ((taken, 0.5), (taken, 0.99), (late, 0.99)))
    return Load(took, p50, p99, broken, replies, late_ms)
