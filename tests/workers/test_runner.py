"""One run, without a trainer: what its threads write of it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from app.errors import UnavailableError
from app.jobs.repository import Claim, LostClaimError
from app.logs import TextFormatter, log_about
from app.settings import Settings
from workers.runner import _Run


class DatabaseThatIsAway:
    now = 0.0

    @contextmanager
    def write(self) -> Iterator[None]:
        raise UnavailableError("away", code="database_unavailable")
        yield


class Run(_Run):
    """Waits for its lease to be lost in the place of a trainer."""

    def run_child(self, stopping: Any) -> None:
        while not self.is_lost:
            time.sleep(0.01)
        raise LostClaimError(self.claim.job_id)


def test_the_thread_that_renews_the_lease_logs_about_the_same_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: Any = Settings(home=tmp_path, lease_seconds=0.2)
    anything: Any = DatabaseThatIsAway()
    claim = Claim("job_1", 2)
    caplog.handler.setFormatter(TextFormatter())

    def run() -> None:
        log_about(job_id=claim.job_id, fence=claim.fence)
        Run(anything, anything, settings, anything, {}, claim, tmp_path).carry_out(anything)

    with caplog.at_level(logging.WARNING), pytest.raises(LostClaimError):
        copy_context().run(run)
    assert caplog.text
    assert all(" job_id=job_1 fence=2: the lease could not be renewed" in line for line in caplog.text.splitlines())
