"""A job's events as server-sent events: the same JSON as the pages, from any point on, until the job ends."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.errors import AuthenticationError
from app.http.pagination import PageRequest
from app.jobs.schemas import EventBody, event_id
from app.jobs.service import JobService
from app.shared_look import SharedLook

LOOK_EVERY_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0


class EventLooks:
    """How far the events of each streamed job have come: one question for all streams together.

    With one for each, 300 streams held up every other call for seconds.
    """

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs
        self._streams: Counter[str] = Counter()  # by job
        self._look = SharedLook("events", self._ask)

    @contextmanager
    def watching(self, job_id: str) -> Iterator[None]:
        """Ask about this job while entered."""
        self._streams[job_id] += 1
        try:
            yield
        finally:
            self._streams[job_id] -= 1
            if not self._streams[job_id]:
                del self._streams[job_id]

    async def newest(self, job_id: str) -> int | None:
        """The sequence of a job's last event, after a while; None where it came too late for the question."""
        return (await self._look.newest()).get(job_id)

    def _ask(self) -> Mapping[str, int]:
        time.sleep(LOOK_EVERY_SECONDS)
        return self._jobs.event_sequences(list(self._streams))


@dataclass(frozen=True)
class EventStream:
    """The events of one job after a cursor."""

    jobs: JobService
    looks: EventLooks
    project_id: str
    job_id: str
    after: int | None
    authenticate: Callable[[], Awaitable[object]]  # raises AuthenticationError once its caller's key lives no more

    async def is_exhausted(self) -> bool:
        """Whether a client that saw everything asks again: there is nothing more to come."""
        if self.after is None:
            return False
        rows, _, has_ended = await asyncio.to_thread(
            self.jobs.events, self.project_id, self.job_id, PageRequest(limit=1, order="asc"), self.after
        )
        return has_ended and not rows

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give each event once, in order; then a comment now and then. End after the last event of an ended job, or
        with its caller's key.
        """
        after, silent_for, has_news = self.after, 0.0, True
        page = PageRequest(limit=100, order="asc")
        with self.looks.watching(self.job_id):
            while True:
                try:
                    await self.authenticate()
                except AuthenticationError:
                    return
                if has_news:
                    rows, has_more, has_ended = await asyncio.to_thread(
                        self.jobs.events, self.project_id, self.job_id, page, after
                    )
                    for row in rows:
                        data = EventBody.of(row).model_dump_json()
                        yield format_sse_event(data_str=data, event=row.type, id=event_id(row.sequence))
                        after, silent_for = row.sequence, 0.0
                    if has_more:
                        continue
                    if has_ended:
                        return
                has_news = await self.looks.newest(self.job_id) != (after or 0)
                silent_for += LOOK_EVERY_SECONDS
                if silent_for >= HEARTBEAT_SECONDS:
                    silent_for = 0.0
                    yield KEEPALIVE_COMMENT
