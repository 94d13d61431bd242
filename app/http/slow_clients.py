"""Connections whose request comes too slowly are told so and ended: each holds a file, and an upload a place as well.

uvicorn bounds how long a connection may idle between requests, and neither how long a request may take to begin nor how
slowly it may come. What is counted here is a request's bytes as they arrive, headers and body alike.
"""

import asyncio
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import BadRequestError, HeadTooLargeError, ServiceError, SlowClientError
from app.http.errors import error_reply
from app.ids import new_id

_LOOK_EVERY_SECONDS = 0.5
# Of a request's line and headers: httptools itself takes any number.
MAX_HEAD_BYTES = 1 << 16


_HEAD_TOO_LARGE = HeadTooLargeError(
    f"The request's line and headers have more than {MAX_HEAD_BYTES:,} bytes. Send less in them.", code="head_too_large"
)


class WatchedProtocol(HttpToolsProtocol):
    """uvicorn's own, that knows how much of a request came, and how fast it comes."""

    judged_at: float | None  # when it was last asked how fast a request comes; None while none does
    behind_seconds: float  # how far it was behind then
    unjudged_bytes: int  # what came since

    def connection_made(self, transport: Any) -> None:
        """A request is expected from now on."""
        super().connection_made(transport)
        self._begin()
        self.is_in_head = True
        self.header_bytes = 0
        self.has_ended = False  # a request, in the bytes that are being read

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        if self.judged_at is None:
            self._begin()
        self.came += len(data)
        self.unjudged_bytes += len(data)
        self.has_ended = False
        super().data_received(data)
        if self.header_bytes > MAX_HEAD_BYTES or (self.is_in_head and self.came > MAX_HEAD_BYTES):
            self.end(_HEAD_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:
        """What came is no request. Said in the one shape, and not in plain text."""
        self.end(BadRequestError(msg, code="invalid_http"))

    def on_message_begin(self) -> None:
        """A request begins."""
        self.is_in_head, self.header_bytes = True, 0
        if self.has_ended:  # what came before it in these bytes was another request's
            self.came = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers, or after a chunked body of its trailers, of which there may be any number as well."""
        self.header_bytes += len(name) + len(value)
        if self.header_bytes <= MAX_HEAD_BYTES:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its body is next, if it has one."""
        self.is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request has come whole."""
        self.judged_at, self.has_ended = None, True
        super().on_message_complete()

    def is_late(self, grace_seconds: float, bytes_per_second: float) -> bool:
        """Whether a request has fallen so far behind this rate. It is to be asked again and again: what came faster
        before buys no time.
        """
        if self.judged_at is None:
            return False
        if self.flow is not None and self.flow.read_paused:  # it is us who don't read on
            self._begin()
            return False
        now = self.loop.time()
        self.behind_seconds += now - self.judged_at - self.unjudged_bytes / bytes_per_second
        self.behind_seconds = max(0.0, self.behind_seconds)
        self.judged_at, self.unjudged_bytes = now, 0
        return self.behind_seconds > grace_seconds

    def end(self, error: ServiceError) -> None:
        """Say why, where no reply has begun, and close."""
        has_begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not self.transport.is_closing() and not has_begun:
            body = bytes(error_reply(error).body)
            head = (
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                "content-type: application/json\r\nconnection: close\r\n"
                f"content-length: {len(body)}\r\nx-request-id: {new_id('req')}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def _begin(self) -> None:
        self.came = 0
        self.judged_at, self.behind_seconds, self.unjudged_bytes = self.loop.time(), 0.0, 0


async def end_slow_clients(connections: Collection[Any], grace_seconds: float, bytes_per_second: int) -> None:
    """Look at the server's connections again and again, until cancelled."""
    error = SlowClientError(
        f"The request came too slowly: it may fall {grace_seconds:g} s behind {bytes_per_second:,} bytes a second. "
        "Nothing was done; send it again over a faster line.",
        code="request_too_slow",
    )
    while True:
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
        for connection in list(connections):
            if isinstance(connection, WatchedProtocol) and connection.is_late(grace_seconds, bytes_per_second):
                connection.end(error)
