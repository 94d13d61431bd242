"""Streams of events look together, so that many of them cost what one does, and each tells its job's whole story."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest

from app.db.tables import EventRow
from app.errors import AuthenticationError
from app.http.pagination import PageRequest
from app.jobs import stream
from app.jobs.stream import EventLooks, EventStream

EVERY = 0.05


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LOOK_EVERY_SECONDS", EVERY)


class Jobs:
    """The part of JobService that streams ask, over lists."""

    def __init__(self, names: Collection[str]) -> None:
        self.stories: dict[str, list[EventRow]] = {name: [] for name in names}
        self.ended: set[str] = set()
        self.questions = self.pages = 0

    def tell(self, job_id: str, *, is_last: bool = False) -> None:
        sequence = len(self.stories[job_id]) + 1
        self.stories[job_id].append(
            EventRow(
                job_id=job_id, sequence=sequence, type="message", level="info", message="", data={}, created_at=0.0
            )
        )
        if is_last:
            self.ended.add(job_id)

    def event_sequences(self, job_ids: Collection[str]) -> dict[str, int]:
        self.questions += 1
        return {job_id: len(self.stories[job_id]) for job_id in job_ids}

    def events(self, _project: str, job_id: str, page: PageRequest, after: int | None) -> Any:
        self.pages += 1
        rest = self.stories[job_id][after or 0 :]
        return rest[: page.limit], len(rest) > page.limit, job_id in self.ended


async def open_door() -> None:
    """A key that lives."""


async def tell_all(
    jobs: Any, looks: EventLooks, job_id: str, authenticate: Callable[[], Awaitable[None]] = open_door
) -> list[str]:
    """The ids that a stream gives, to its end."""
    told = b"".join([part async for part in EventStream(jobs, looks, "proj_1", job_id, None, authenticate)])
    return [line.removeprefix("id: ") for line in told.decode().splitlines() if line.startswith("id: ")]


def test_many_streams_ask_one_question_and_read_only_what_is_new() -> None:
    names = [f"job_{i}" for i in range(5)]
    jobs: Any = Jobs(names)
    looks = EventLooks(jobs)

    async def watch() -> tuple[list[list[str]], float]:
        streams = [asyncio.create_task(tell_all(jobs, looks, names[i % 5])) for i in range(100)]
        begun = time.monotonic()
        await asyncio.sleep(10 * EVERY)
        before = jobs.pages
        await asyncio.sleep(10 * EVERY)
        assert jobs.pages == before, "nothing was new"
        for step in range(3):
            for name in names:
                jobs.tell(name, is_last=step == 2)
            await asyncio.sleep(2 * EVERY)
        return await asyncio.wait_for(asyncio.gather(*streams), 10), time.monotonic() - begun

    told, seconds = asyncio.run(watch())
    assert {tuple(ids) for ids in told} == {tuple(f"evt_{n:012}" for n in (1, 2, 3))}
    assert jobs.questions <= seconds / EVERY + 1
    assert jobs.pages <= 100 * (2 + 3)


def test_a_story_longer_than_a_page_is_told_whole_and_a_stream_that_comes_late_waits_for_no_other() -> None:
    jobs: Any = Jobs(["job_1", "job_2"])
    looks = EventLooks(jobs)
    for number in range(250):
        jobs.tell("job_1", is_last=number == 249)

    async def watch() -> tuple[list[str], list[str]]:
        waiting = asyncio.create_task(tell_all(jobs, looks, "job_2"))
        await asyncio.sleep(EVERY * 1.5)  # a question about the other is out
        whole = await asyncio.wait_for(tell_all(jobs, looks, "job_1"), 5)
        jobs.tell("job_2", is_last=True)
        return whole, await asyncio.wait_for(waiting, 5)

    whole, other = asyncio.run(watch())
    assert whole == [f"evt_{n:012}" for n in range(1, 251)]
    assert other == ["evt_000000000001"]
    assert not looks._streams, "nobody watches any more"


def test_a_stream_ends_after_what_it_told_once_its_key_lives_no_more() -> None:
    jobs: Any = Jobs(["job_1"])
    looks = EventLooks(jobs)
    jobs.tell("job_1")
    calls = 0

    async def authenticate() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            jobs.tell("job_1")  # the job goes on, and what comes now is for others
            raise AuthenticationError("It was revoked.", code="invalid_api_key")

    assert asyncio.run(asyncio.wait_for(tell_all(jobs, looks, "job_1", authenticate), 5)) == ["evt_000000000001"]
    assert calls == 3
    assert not looks._streams, "nobody watches any more"
