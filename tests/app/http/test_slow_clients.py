"""A request that comes too slowly is ended with a 408, whichever part of it is slow; and no other is."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from app.http.slow_clients import WatchedProtocol, end_slow_clients

GRACE, RATE = 1.0, 100_000


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads a body and answers; /slow thinks for long before that, /early answers first."""
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        await asyncio.sleep(GRACE * 2)
    is_more = True
    if scope["path"] == "/early":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        is_more = message.get("more_body", False)
    if scope["path"] != "/early":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    server = uvicorn.Server(uvicorn.Config(application, http=WatchedProtocol, lifespan="off", log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))

    async def serve() -> None:
        watching = asyncio.create_task(end_slow_clients(server.server_state.connections, GRACE, RATE))
        await server.serve(sockets=[listener])
        watching.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()


def talk(address: tuple[str, int], *parts: bytes, every: float = 0.0) -> tuple[bytes, float]:
    """Send the parts with a pause after each, and read to the connection's end; what came, and after what time."""
    begun = time.monotonic()
    with socket.create_connection(address, timeout=20) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(every)
        except OSError:
            pass  # it was ended meanwhile
        came = b""
        try:
            while piece := connection.recv(65_536):
                came += piece
        except ConnectionResetError:
            pass
    return came, time.monotonic() - begun


HEAD = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 40\r\n"


@pytest.mark.parametrize(
    ("parts", "every"),
    [
        ((), 0),
        ((b"POST / HT",), 0),
        ((HEAD,), 0),
        ((HEAD, *[b"x-a: b\r\n"] * 60), 0.05),
        ((HEAD + b"\r\n", b"begin"), 0),
        ((HEAD + b"\r\n", *[b"b"] * 39), 0.08),
    ],
    ids=["nothing", "half a line", "no end of headers", "headers a drop at a time", "half a body", "a body in drops"],
)
def test_what_comes_too_slowly_is_ended(address: tuple[str, int], parts: tuple[bytes, ...], every: float) -> None:
    came, seconds = talk(address, *parts, every=every)
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("request_too_slow", "invalid_request_error")
    assert GRACE <= seconds < GRACE * 6


def test_what_is_no_request_is_told_so_in_the_one_shape_of_errors(address: tuple[str, int]) -> None:
    came, _ = talk(address, b"NONSENSE\r\n\r\n")
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_a_fast_start_buys_no_time_for_trickling_afterwards(address: tuple[str, int]) -> None:
    begin, drops = b"x" * 2_000_000, [b"y"] * 200  # 20 s at the fair rate
    head = HEAD.replace(b"content-length: 40", b"content-length: 3000000")
    came, seconds = talk(address, head + b"\r\n" + begin, *drops, every=0.08)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert GRACE <= seconds < GRACE * 12


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 20_000])
def test_a_head_that_goes_on_and_on_is_ended_however_fast_it_comes(address: tuple[str, int], head: bytes) -> None:
    came, seconds = talk(address, head)
    assert came.startswith(b"HTTP/1.1 431 ")
    assert seconds < GRACE


def test_a_large_body_behind_a_small_head_is_no_large_head(address: tuple[str, int]) -> None:
    body = b"x" * 300_000
    came, _ = talk(address, HEAD.replace(b"content-length: 40", b"content-length: 300000") + b"\r\n" + body)
    assert came.startswith(b"HTTP/1.1 200")


def test_trailers_without_end_are_ended(address: tuple[str, int]) -> None:
    head = b"POST /slow HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    came, _ = talk(address, head, b"x-trailer: abcdefgh\r\n" * 20_000)
    assert came.startswith(b"HTTP/1.1 431 ")


def test_a_head_behind_another_requests_body_is_counted_by_itself(address: tuple[str, int]) -> None:
    body = b"x" * 200_000
    first = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + body
    came, _ = talk(address, first + HEAD[:30], HEAD[30:] + b"\r\n" + b"y" * 40)
    assert came.count(b"HTTP/1.1 200") == 2


def test_a_reply_that_has_begun_is_only_cut(address: tuple[str, int]) -> None:
    came, _ = talk(address, HEAD.replace(b"/ ", b"/early ") + b"\r\n", b"begin")
    assert b"HTTP/1.1 200" in came
    assert b"408" not in came


def test_a_long_body_at_a_fair_rate_is_read_whole(address: tuple[str, int]) -> None:
    pieces = [b"x" * 40_000] * 10
    head = HEAD.replace(b"content-length: 40", b"content-length: 400000")
    came, seconds = talk(address, head + b"\r\n", *pieces, every=0.2)
    assert seconds > GRACE * 2
    assert came.startswith(b"HTTP/1.1 200")
    assert came.endswith(b"ok")


def test_who_waits_for_an_answer_or_between_requests_is_not_hurried(address: tuple[str, int]) -> None:
    ask = b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(2):
            connection.sendall(ask)
            came = b""
            while not came.endswith(b"ok"):
                piece = connection.recv(65_536)
                assert piece, came
                came += piece
            assert came.startswith(b"HTTP/1.1 200")
            time.sleep(GRACE * 1.5)
