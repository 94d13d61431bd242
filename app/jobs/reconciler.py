"""The same small round in every process: give back jobs whose worker is gone, and ring for them. A worker also notes
that it lives.

It is idempotent, so any number of processes may run it at once.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass

from app.db.session import Database
from app.errors import UnavailableError
from app.jobs import repository
from app.jobs.repository import Released
from app.logs import log_about
from app.periodic import Periodic
from app.queue import JobQueue
from app.settings import Settings

# A worker that was not seen for so many rounds is taken for dead. Its jobs are not: they have their leases.
ABSENT_AFTER_ROUNDS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Presence:
    """A worker, as the others know it."""

    owner: str  # host:pid
    queues: Sequence[str]


class Reconciler(Periodic):
    """Runs the round every `poll_seconds`. presence: of the worker that this process is."""

    def __init__(
        self, database: Database, queue: JobQueue, settings: Settings, presence: Presence | None = None
    ) -> None:
        super().__init__("reconciling", settings.poll_seconds)
        self._database = database
        self._queue = queue
        self._settings = settings
        self._presence = presence

    def stop(self) -> None:
        """End after the present round."""
        super().stop()
        if self._presence is not None:
            with suppress(UnavailableError), self._database.write() as session:
                repository.forget_worker(session, self._presence.owner)

    def run_once(self) -> None:
        """One round."""
        now, absent_seconds = self._database.now, ABSENT_AFTER_ROUNDS * self._settings.poll_seconds
        with self._database.write() as session:
            if self._presence is not None:
                repository.see_worker(session, self._presence.owner, self._presence.queues, now=now)
            repository.forget_absent_workers(session, seen_before=now - absent_seconds)
            released = repository.reconcile(session, cap=self._settings.max_attempts, now=now)
        for job in released:
            copy_context().run(_tell, job)
            if job.status == "queued":
                self._queue.wake(job.queue)


def _tell(job: Released) -> None:
    log_about(job_id=job.job_id)
    log.warning("lost its worker: %s", job.status)
