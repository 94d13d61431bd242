"""Celery, as a doorbell: the one task says "there may be work". Jobs run in the slots, not in Celery's pool.

So nothing Celery or the broker does (redelivery, a lost message, a reconnect, a shutdown) can touch a running job.
"""

import warnings
from collections.abc import Callable

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_shutting_down

from app.queue import WAKE_TASK, make_celery


def make_worker_app(broker_url: str, ring: Callable[[], None], stop: Callable[[], None]) -> Celery:
    """The worker's end: `ring` is called for each message, `stop` once the worker is asked to end."""
    celery = make_celery(broker_url)

    @celery.task(name=WAKE_TASK)  # type: ignore[untyped-decorator]
    def wake() -> None:
        ring()

    setup_logging.connect(_leave_logging_alone, weak=False)
    # weak=False: nobody else holds this function.
    worker_shutting_down.connect(lambda **_: stop(), weak=False)
    return celery


def _leave_logging_alone(**_: object) -> None:
    """Celery configures logging unless somebody listens here; ours is configured."""


def serve(celery: Celery, queues: list[str]) -> None:
    """Listen until the process is asked to end (SIGTERM, SIGINT)."""
    # Celery warns root of pickle; messages here are JSON, and an empty one at that.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    celery.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            "--concurrency=1",
            f"--queues={','.join(queues)}",
            "--without-gossip",
            "--without-mingle",
        ]
    )
