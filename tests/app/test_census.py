"""The census counts what the rows say, on either database."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.census import QUEUES, Census, Waiting, take_census
from app.db.session import Database
from app.db.tables import DatasetRow
from app.jobs import repository
from tests.app.jobs.house import House


@pytest.fixture
def house(job_database: Database) -> Iterator[House]:
    house = House(job_database)
    yield house
    house.clear()


def census(house: House) -> Census:
    found: Census = house.run(take_census, now=house.now, seen_since=house.now - 30)
    return found


def some(counts: Any) -> dict[Any, Any]:
    """Those that are not 0."""
    return {key: count for key, count in counts.items() if count}


def test_of_no_rows_it_has_a_zero_for_each_word_there_is(house: House) -> None:
    found = census(house)
    assert len(found.jobs) == 6 * 6
    assert some(found.jobs) == some(found.claims) == some(found.attempts) == some(found.stored_bytes) == {}
    assert found.waiting == dict.fromkeys(QUEUES, Waiting())
    assert found.workers == dict.fromkeys(QUEUES, 0)
    assert found.running == {}


def test_jobs_of_all_projects_are_counted_by_kind_and_status(house: House) -> None:
    house.add(project_id="proj_b")
    house.add(status="failed")
    house.add(kind="evaluation", status="failed", queue="bulk")
    house.add()
    assert some(census(house).jobs) == {
        ("training", "queued"): 2,
        ("training", "failed"): 1,
        ("evaluation", "failed"): 1,
    }


def test_a_run_that_ends_badly_is_a_claim_and_an_attempt_and_its_job_waits_from_then_on(house: House) -> None:
    house.add(created_at=house.now - 500, queued_at=house.now - 500)
    house.add(queue="short", queued_at=house.now - 20)
    assert census(house).waiting["cpu"] == Waiting(1, 500)
    claim = house.must_claim()
    assert census(house).waiting["cpu"] == Waiting()
    house.now += 100
    house.release(claim)
    house.now += 7
    found = census(house)
    assert found.waiting["cpu"] == Waiting(1, 7)
    assert found.waiting["short"] == Waiting(1, 127)
    assert some(found.claims) == some(found.attempts) == {"training": 1}


def test_a_paused_job_waits_only_from_when_it_is_resumed(house: House) -> None:
    job = house.add(status="paused", queued_at=0.0)
    assert census(house).waiting["cpu"] == Waiting()
    house.run(repository.queue_again, job, now=house.now)
    assert census(house).waiting["cpu"] == Waiting(1, 0)


def test_workers_that_were_seen_lately_are_counted_for_each_of_their_queues(house: House) -> None:
    for owner, queues, seconds in (("a:1", ["gpu", "cpu"], 0), ("b:1", ["cpu"], 20), ("c:1", ["cpu"], 40)):
        house.run(repository.see_worker, owner, queues, now=house.now - seconds)
    assert some(census(house).workers) == {"cpu": 2, "gpu": 1}


def test_bytes_are_those_of_all_rows_and_progress_that_of_running_jobs(house: House) -> None:
    house.add(progress={"step": 9})
    claim = house.must_claim()
    house.run(repository.take_over, claim, [], progress={"step": 3, "step_seconds": 0.5})
    house.checkpoint(claim, 3)
    with house.database.write() as session:
        for name in ("1", "2"):
            columns = {"name": "", "file": "", "sha256": "", "rows": 1, "facts": {}, "source": {}, "extra": {}}
            session.add(DatasetRow(id=f"ds_{name}", project_id="proj_a", bytes=40, created_at=0.0, **columns))
    found = census(house)
    assert some(found.stored_bytes) == {"datasets": 80, "checkpoints": 1}
    assert found.running == {claim.job_id: {"step": 3, "step_seconds": 0.5}}
