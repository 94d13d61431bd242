"""What callers ask for again and again is read off an index, from the cursor on, however many rows there are.

A plan is what the database says it will do with the very statement that the service sends. It is made over enough rows
that a plan by an index is worth it.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session

from app.census import take_census
from app.db.session import Database
from app.db.tables import EventRow, JobMetadataRow, JobRow, ModelMetadataRow, ModelRow
from app.http.pagination import PageRequest
from app.jobs import repository
from app.models import repository as models
from tests.app.jobs.house import House

JOBS = 3_000
PAGE = PageRequest(after=f"job_{JOBS:08d}")
MODELS = PageRequest(after=f"mdl_job_{JOBS:08d}")
TEAM = {"team": "3"}
TRAININGS = {"kind": "training"}


@pytest.fixture(scope="module")
def database(job_database: Database) -> Database:
    """Jobs of two projects, one of which had the oldest, and of whose the newest wait; pairs that many share."""
    House(job_database)
    common: dict[str, Any] = {
        "name": "j", "spec": {}, "warnings": [], "fence": 0, "attempts": 0, "has_progressed": False, "events_offset": 0,
        "event_sequence": 0, "progress": {}, "metrics": {}, "queued_at": 0.0, "created_at": 0.0,
    }  # fmt: skip
    jobs = [
        {
            **common,
            "id": f"job_{number:08d}",
            "project_id": f"proj_{'ab'[number > JOBS // 2]}",
            "kind": "evaluation" if number % 10 == 0 else "training",
            "queue": ("cpu", "gpu")[number % 3 == 0],
            "dataset_id": f"ds_{number % 50}",
            "status": "queued" if number > JOBS * 0.9 else ("failed", "running", "succeeded")[min(number % 30, 2)],
            "extra": {"team": f"{number % 5}"},
        }
        for number in range(JOBS)
    ]
    pairs = [
        {"project_id": job["project_id"], "kind": job["kind"], "key": key, "value": value, "id": job["id"]}
        for job in jobs
        for key, value in job["extra"].items()
    ]
    told = {"level": "info", "type": "message", "message": "m", "data": {}, "created_at": 0.0}
    events = [{"job_id": "job_00000001", "sequence": number, **told} for number in range(JOBS)]
    made = [
        {"id": f"mdl_{job['id']}", "project_id": job["project_id"], "job_id": job["id"], "name": "m", "folder": "f",
         "description": {}, "bytes": 1, "extra": job["extra"], "created_at": 0.0}
        for job in jobs
    ]  # fmt: skip
    of_models = [{**pair, "id": f"mdl_{pair['id']}"} for pair in pairs]
    for pair in of_models:
        del pair["kind"]
    with job_database.write() as session:
        session.execute(insert(JobRow), jobs)
        session.execute(insert(JobMetadataRow), pairs)
        session.execute(insert(EventRow), events)
        session.execute(insert(ModelRow), made)
        session.execute(insert(ModelMetadataRow), of_models)
    with job_database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not job_database.is_sqlite:
            connection.execute(text("VACUUM ANALYZE"))
    return job_database


Ask = Callable[[Session], Any]


def listed(project: str = "proj_a", *, metadata: dict[str, str] | None = None, **filters: str) -> Ask:
    """A page of jobs."""
    return lambda session: repository.list_jobs(
        session, project, PAGE, filters={**TRAININGS, **filters}, metadata=metadata or {}
    )


def claim(*queues: str) -> Ask:
    return lambda session: repository.claim_next(
        session, queues=queues, kinds=("training",), owner="w", lease=60.0, now=0.0
    )


def plan_of(database: Database, ask: Ask) -> list[str]:
    """The lines of the plans of all that is read or claimed, which is taken back."""
    lines: list[str] = []
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN (COSTS OFF) "

    def look(connection: Connection, _cursor: Any, statement: str, given: Any, *_: object) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            lines.extend(str(row[-1]).strip() for row in connection.exec_driver_sql(explain + statement, given))

    with database.write() as session:
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", look)
        ask(session)
        event.remove(connection, "before_cursor_execute", look)
        session.rollback()
    return lines


# A table that grows with jobs, read from end to end.
WALK = re.compile(r"Seq Scan on (jobs|events|models)|SCAN (jobs|events|models)(?! USING COVERING)")

CASES: dict[str, tuple[Ask, str]] = {
    "list": (listed(), "ix_jobs_page"),
    "list by status": (listed(status="failed"), "ix_jobs_page_of_status"),
    "list by wish": (listed(status="cancelling"), "ix_jobs_page_of_status"),
    "list by dataset": (listed(dataset_id="ds_3"), "ix_jobs_page_of_dataset"),
    "list by metadata": (listed(metadata=TEAM), "pk_job_metadata"),
    "get": (lambda session: repository.find(session, "proj_a", "job_00000002"), "pk_jobs"),
    "events": (lambda session: repository.list_events(session, "job_00000001", PAGE, JOBS // 2), "pk_events"),
    "models": (lambda session: models.list_models(session, "proj_a", MODELS, {}), "ix_models_page"),
    "models by metadata": (
        lambda session: models.list_models(session, "proj_a", MODELS, {"team": "3"}),
        "pk_model_metadata",
    ),
    "claim": (claim("cpu"), "ix_jobs_turn"),
    "claim of two queues": (claim("gpu", "cpu"), "ix_jobs_turn"),
    "expired leases": (lambda session: repository.reconcile(session, cap=3, now=0.0), "ix_jobs_lease"),
    "speed": (lambda session: repository.tokens_per_second(session, "cpu", "m"), "ix_jobs_claim"),
    "census": (lambda session: take_census(session, now=0.0, seen_since=0.0), "ix_jobs_counted"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_read_off_its_index(database: Database, name: str) -> None:
    ask, index = CASES[name]
    if database.is_sqlite and index.startswith("pk_"):
        index = f"sqlite_autoindex_{index.removeprefix('pk_')}_1"
    plan = plan_of(database, ask)
    assert any(index in line for line in plan), plan
    assert [line for line in plan if WALK.search(line)] == [], plan
