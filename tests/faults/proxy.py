"""A TCP proxy that stands in for a bad network: it cuts, resets, swallows and delays."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Mode = Literal["pass", "black_hole", "delay", "refuse"]

CHUNK_BYTES = 1 << 16
DELAY_SECONDS = 0.2


class Proxy:
    """Forwards connections to one address, in the way that `mode` says. Runs in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._mode: Mode = "pass"
        self._loop = asyncio.new_event_loop()
        self._links: set[asyncio.StreamWriter] = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def set(self, mode: Mode) -> None:
        """pass · black_hole: bytes go in and none come out · delay: each piece comes late · refuse: no new link."""
        self._mode = mode

    def cut(self, *, reset: bool = False) -> None:
        """End every open link: in order, or by a reset, as a crashed host's kernel answers."""
        asyncio.run_coroutine_threadsafe(self._cut(reset), self._loop).result(10)

    def close(self) -> None:
        """End all links and the thread."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._link, sock=self._socket))
        self._loop.run_forever()

    async def _cut(self, reset: bool) -> None:
        for writer in list(self._links):
            if reset and (link := writer.get_extra_info("socket")) is not None:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if reset else writer.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        pair = {writer, far_writer}
        self._links |= pair
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._links -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                if self._mode == "delay":
                    await asyncio.sleep(DELAY_SECONDS)
                if self._mode == "black_hole":
                    continue
                writer.write(piece)
                await writer.drain()
        writer.close()


@contextmanager
def proxy_to(host: str, port: int) -> Iterator[Proxy]:
    """A proxy that ends with the block."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
