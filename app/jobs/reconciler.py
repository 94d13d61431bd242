"""The same small round in every process: give back jobs whose worker is gone, and ring for them.

It is idempotent, so any number of processes may run it at once.
"""

import logging

from app.db.session import Database
from app.jobs import repository
from app.periodic import Periodic
from app.queue import JobQueue
from app.settings import Settings

log = logging.getLogger(__name__)


class Reconciler(Periodic):
    """Runs the round every `poll_seconds`."""

    def __init__(self, database: Database, queue: JobQueue, settings: Settings) -> None:
        super().__init__("reconciling", settings.poll_seconds)
        self._database = database
        self._queue = queue
        self._settings = settings

    def run_once(self) -> None:
        """One round."""
        with self._database.write() as session:
            released = repository.reconcile(session, cap=self._settings.max_attempts, now=self._database.now)
        for job in released:
            log.warning("job %s lost its worker: %s", job.job_id, job.status)
            if job.status == "queued":
                self._queue.wake(job.queue)
