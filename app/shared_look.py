"""What many want to know at the same time is looked up once."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Found = TypeVar("Found")


class SharedLook(Generic[Found]):
    """One look at a time, in a thread of its own, shared by all who ask while it lasts.

    All routes share a few threads: whoever asks must not hold one of them, however long the look takes.
    """

    def __init__(self, name: str, look: Callable[[], Found]) -> None:
        self._look = look
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._newest: Future[Found] | None = None

    async def newest(self) -> Found:
        """What the look found that is going on, or a new one."""
        # Shielded: one who leaves must not take the look from the others.
        return await asyncio.shield(asyncio.wrap_future(self._begin()))

    def newest_now(self) -> Found:
        """The same, for a thread that may wait."""
        return self._begin().result()

    def _begin(self) -> Future[Found]:
        with self._lock:
            if self._newest is None or self._newest.done():
                self._newest = self._thread.submit(self._look)
            return self._newest
