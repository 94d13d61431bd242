"""Wake-up calls: "there may be work on this queue". The only place under `app` that knows Celery.

A call that is lost or doubled costs nothing: the rows are the truth, and idle workers look for themselves.
"""

import logging
from typing import Literal

from celery import Celery

WAKE_TASK = "minimand.wake"

log = logging.getLogger(__name__)


class JobQueue:
    """The publisher's end of the broker."""

    def __init__(self, broker_url: str | None) -> None:
        self._celery = None if broker_url is None else make_celery(broker_url)
        if self._celery is not None:
            # A request waits for this end: one try, and no answer within a second is none.
            self._celery.conf.broker_transport_options = {
                "socket_connect_timeout": 1,
                "socket_timeout": 1,
                "max_retries": 0,
            }

    def wake(self, queue: str) -> None:
        """Ring, and never fail or wait long: with the broker down the job waits for a worker's next look."""
        if self._celery is None:
            return
        try:
            self._celery.send_task(WAKE_TASK, queue=queue, retry=False, ignore_result=True)
        except Exception as error:  # the job is accepted whatever the broker says
            log.warning("the broker could not be told of new work on %r: %s", queue, type(error).__name__)

    def health(self) -> Literal["ok", "unreachable", "none"]:
        """ok, unreachable, or "none" where no broker is set and workers look for themselves."""
        if self._celery is None:
            return "none"
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=1)
        except Exception:  # whatever is wrong with it, it cannot be reached
            return "unreachable"
        return "ok"


def make_celery(broker_url: str) -> Celery:
    """The Celery application, the same for publishers and workers."""
    celery = Celery("minimand", broker=broker_url, set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: a worker must not end, and stop its trainers, over a doorbell
        broker_transport_options={"socket_connect_timeout": 1, "socket_timeout": 5},
    )
    return celery
