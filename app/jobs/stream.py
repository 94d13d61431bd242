"""A job's events as server-sent events: the same JSON as the pages, from any point on, until the job ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.errors import AuthenticationError
from app.http.pagination import PageRequest
from app.jobs.schemas import EventBody, event_id
from app.jobs.service import JobService

LOOK_EVERY_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0


@dataclass(frozen=True)
class EventStream:
    """The events of one job after a cursor."""

    jobs: JobService
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
        after, silent_for = self.after, 0.0
        page = PageRequest(limit=100, order="asc")
        while True:
            try:
                await self.authenticate()
            except AuthenticationError:
                return
            rows, has_more, has_ended = await asyncio.to_thread(
                self.jobs.events, self.project_id, self.job_id, page, after
            )
            for row in rows:
                body = EventBody.of(row)
                yield format_sse_event(data_str=body.model_dump_json(), event=row.type, id=event_id(row.sequence))
                after, silent_for = row.sequence, 0.0
            if has_more:
                continue
            if has_ended:
                return
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            silent_for += LOOK_EVERY_SECONDS
            if silent_for >= HEARTBEAT_SECONDS:
                silent_for = 0.0
                yield KEEPALIVE_COMMENT
