"""Counts over the rows of all projects, for /metrics: each read off an index, or as many as run at one time.

It knows no HTTP and no Prometheus.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import CheckpointRow, DatasetRow, JobRow, ModelRow
from app.jobs.reconciler import ABSENT_AFTER_ROUNDS
from app.jobs.repository import Now, worker_queues
from app.jobs.states import BULK_QUEUE, SHORT_QUEUE, Status
from app.settings import Settings
from ml.specs.job import JobKind

QUEUES = ("cpu", "gpu", SHORT_QUEUE, BULK_QUEUE)
# Several scrapers, and the pages of a dashboard, share one count.
COUNT_SECONDS = 2.0


@dataclass(frozen=True)
class Waiting:
    """The jobs of a queue that no worker has taken."""

    jobs: int = 0
    oldest_seconds: float = 0.0  # since the one that waits longest was queued


@dataclass(frozen=True)
class Census:
    """What the rows came to at one moment."""

    jobs: Mapping[tuple[str, str], int]  # by kind and status
    claims: Mapping[str, int]  # by kind
    attempts: Mapping[str, int]  # by kind: claims that ended badly without a new checkpoint
    waiting: Mapping[str, Waiting]  # by queue
    workers: Mapping[str, int]  # that live, by the queues they claim from
    stored_bytes: Mapping[str, int]
    running: Mapping[str, dict[str, Any]]  # the progress of each running job, by its id


class Censuses:
    """The newest census, made when somebody asks and the last one is older than COUNT_SECONDS."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._absent_seconds = ABSENT_AFTER_ROUNDS * settings.poll_seconds
        self._lock = threading.Lock()
        self._newest: tuple[float, Census] | None = None

    def newest(self) -> Census:
        """Raises UnavailableError."""
        with self._lock:
            if self._newest is None or time.monotonic() - self._newest[0] > COUNT_SECONDS:
                now = self._database.now
                with self._database.read() as session:
                    census = take_census(session, now=now, seen_since=now - self._absent_seconds)
                self._newest = time.monotonic(), census
            return self._newest[1]


def take_census(session: Session, *, now: Now, seen_since: Now) -> Census:
    """Count. seen_since: a worker that was not seen since then is taken for dead."""
    kinds: Sequence[str] = get_args(JobKind)
    jobs: dict[tuple[str, str], int] = dict.fromkeys(product(kinds, get_args(Status)), 0)
    claims, attempts = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    sums = func.count(), func.sum(JobRow.fence), func.sum(JobRow.attempts)
    for kind, status, count, fences, charged in session.execute(
        select(JobRow.kind, JobRow.status, *sums).group_by(JobRow.kind, JobRow.status)
    ):
        jobs[kind, status] = count
        claims[kind] += int(fences)
        attempts[kind] += int(charged)

    waiting = dict.fromkeys(QUEUES, Waiting())
    oldest = now - func.min(JobRow.queued_at)
    is_queued = JobRow.status == "queued"
    for queue, count, seconds in session.execute(
        select(JobRow.queue, func.count(), oldest).where(is_queued).group_by(JobRow.queue)
    ):
        waiting[queue] = Waiting(count, max(0.0, seconds))

    workers = dict.fromkeys(QUEUES, 0)
    for queues in worker_queues(session, seen_since=seen_since):
        for queue in queues:
            workers[queue] = workers.get(queue, 0) + 1

    sizes = {"datasets": DatasetRow.bytes, "models": ModelRow.bytes, "checkpoints": CheckpointRow.bytes}
    totals = {what: session.scalar(select(func.sum(size))) for what, size in sizes.items()}
    running = session.scalars(select(JobRow).where(JobRow.status == "running"))
    return Census(
        jobs=jobs,
        claims=claims,
        attempts=attempts,
        waiting=waiting,
        workers=workers,
        stored_bytes={what: int(total or 0) for what, total in totals.items()},
        running={job.id: job.progress for job in running},
    )
