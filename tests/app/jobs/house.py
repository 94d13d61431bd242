"""A database of jobs with no service around it, by a clock of our own."""

import itertools
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from app.db.session import Database
from app.db.tables import Base, CheckpointRow, EventRow, JobRow, ProjectRow
from app.http.pagination import PageRequest
from app.jobs import repository
from app.jobs.repository import Claim, Event, Released, Why

LEASE = 60.0
CAP = 3

_numbers = itertools.count(1)


class House:
    """A database of jobs, and a clock that stands still."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 1_000.0
        with database.write() as session:
            session.add_all(ProjectRow(id=f"proj_{name}", name=name, created_at=0.0) for name in ("a", "b"))

    def clear(self) -> None:
        """Remove every row."""
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())

    def add(self, **columns: Any) -> str:
        """A job, queued unless said otherwise. Ids sort by the order they were added in."""
        defaults: dict[str, Any] = {
            "id": f"job_{next(_numbers):08d}",
            "project_id": "proj_a",
            "kind": "training",
            "queue": "cpu",
            "name": "j",
            "dataset_id": "ds_1",
            "spec": {},
            "warnings": [],
            "extra": {},
            "status": "queued",
            "fence": 0,
            "attempts": 0,
            "has_progressed": False,
            "events_offset": 0,
            "event_sequence": 0,
            "progress": {},
            "metrics": {},
            "queued_at": self.now,
            "created_at": self.now,
        }
        row = JobRow(**{**defaults, **columns})
        with self.database.write() as session:
            session.add(row)
        return row.id

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """One repository function in a transaction of its own."""
        with self.database.write() as session:
            return function(session, *arguments, **named)

    def claim(
        self, owner: str = "w", queues: tuple[str, ...] = ("cpu",), kinds: tuple[str, ...] = ("training",)
    ) -> Claim | None:
        found: Claim | None = self.run(
            repository.claim_next, queues=queues, kinds=kinds, owner=owner, lease=LEASE, now=self.now
        )
        return found

    def must_claim(self) -> Claim:
        claim = self.claim()
        assert claim is not None
        return claim

    def renew(self, claim: Claim) -> str | None:
        wanted: str | None = self.run(repository.renew_lease, claim, lease=LEASE, now=self.now)
        return wanted

    def release(self, claim: Claim, *, charge: bool = True) -> Released | None:
        released: Released | None = self.run(
            repository.release, claim, charge=charge, cap=CAP, why=Why("trainer_died", "its trainer died"), now=self.now
        )
        return released

    def reconcile(self) -> list[Released]:
        released: list[Released] = self.run(repository.reconcile, cap=CAP, now=self.now)
        return released

    def checkpoint(self, claim: Claim, step: int) -> None:
        row = CheckpointRow(
            id=f"ckpt_{next(_numbers):08d}",
            job_id=claim.job_id,
            fence=claim.fence,
            step=step,
            epoch=1.0,
            folder="f",
            bytes=1,
            sha256="s",
            metrics={},
            created_at=self.now,
        )
        self.run(repository.add_checkpoint, claim, row, [Event("checkpoint", f"checkpoint at step {step}", {})])

    def row(self, job_id: str) -> JobRow:
        with self.database.read() as session:
            return session.get_one(JobRow, job_id)

    def columns(self, job_id: str) -> dict[str, Any]:
        row = self.row(job_id)
        return {column.key: getattr(row, column.key) for column in JobRow.__mapper__.column_attrs}

    def events(self, job_id: str) -> list[EventRow]:
        with self.database.read() as session:
            return list(session.scalars(select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.sequence)))

    def reasons(self, job_id: str) -> list[str]:
        return [event.data["reason"] for event in self.events(job_id) if event.type == "status"]

    def listed(self, page: PageRequest | None = None, *, project: str = "proj_a", **filters: Any) -> list[str]:
        metadata = filters.pop("metadata", {})
        page = page or PageRequest(limit=100, order="asc")
        with self.database.read() as session:
            rows, _ = repository.list_jobs(session, project, page, filters=filters, metadata=metadata)
        return [row.id for row in rows]
