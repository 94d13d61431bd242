"""Slots: threads that each claim the next job of their queue, run it, and look again. A ring only shortens the wait.

It knows when to claim, not how a job runs.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

from app.db.session import Database
from app.errors import UnavailableError
from app.jobs import repository
from app.jobs.repository import Claim
from app.logs import log_about
from app.queue import JobQueue
from app.settings import Settings
from ml.crash_points import crash_point
from workers.devices import Slot
from workers.runner import Runner
from workers.spares import Spares

log = logging.getLogger(__name__)


class Slots:
    """A worker's slots."""

    def __init__(
        self,
        plan: Sequence[Slot],
        database: Database,
        runner: Runner,
        queue: JobQueue,
        settings: Settings,
        spares: Spares,
    ) -> None:
        self._plan = plan
        self._database = database
        self._runner = runner
        self._queue = queue
        self._settings = settings
        self._spares = spares
        self.host = host_id(settings.home.resolve() / "host.id")
        self._stopping = threading.Event()
        self._rung = threading.Condition()
        self._rings = 0
        self._threads = [threading.Thread(target=self._work, args=(slot,), name=slot.name) for slot in plan]

    @property
    def names(self) -> list[str]:
        """What the slots are called."""
        return [slot.name for slot in self._plan]

    @property
    def queues(self) -> list[str]:
        """The queues they claim from."""
        return sorted({queue for slot in self._plan for queue in slot.queues})

    def take_back(self) -> None:
        """Free the jobs of workers of this host that are dead, instead of waiting for their leases to run out."""
        with self._database.write() as session:
            dead = [owner for owner in repository.running_owners(session, self.host) if not _is_alive(owner)]
            repository.end_leases(session, dead)

    def start(self) -> None:
        """Begin to claim."""
        for thread in self._threads:
            thread.start()

    def ring(self) -> None:
        """There may be work: every idle slot looks now."""
        with self._rung:
            self._rings += 1
            self._rung.notify_all()

    def stop(self) -> None:
        """Claim no more, and have every running trainer write a checkpoint and end.

        Safe in a signal handler: the condition's lock may be taken again by the thread that holds it.
        """
        self._stopping.set()
        with self._rung:
            self._rung.notify_all()

    def join(self) -> None:
        """Wait until every slot has let go."""
        for thread in self._threads:
            thread.join()

    def _work(self, slot: Slot) -> None:
        owner = f"{self.host}:{os.getpid()}:{slot.name}"
        while not self._stopping.is_set():
            # What is logged about a job ends with its turn.
            copy_context().run(self._take_turn, slot, owner)

    def _take_turn(self, slot: Slot, owner: str) -> None:
        """Claim a job and run it, or wait until there may be one."""
        rings = self._rings
        try:
            claim = self._claim(slot, owner)
            if claim is None:
                self._spares.mend()
                self._wait(rings)
                return
            log_about(job_id=claim.job_id, fence=claim.fence)
            log.info("claimed by %s", slot.name)
            crash_point("run.after_claim")
            released = self._runner.run(claim, slot.environment, self._stopping)
            crash_point("run.after_release")
            if released is not None and released.status == "queued":
                self._queue.wake(released.queue)
        except UnavailableError as error:
            log.warning("the database cannot be reached, trying again: %s", error.__cause__)
            self._stopping.wait(1.0)
        except Exception:  # the boundary: one job's fault must not end the slot; its lease runs out
            log.exception("slot %s: unexpected fault", slot.name)
            self._stopping.wait(1.0)

    def _claim(self, slot: Slot, owner: str) -> Claim | None:
        with self._database.write() as session:
            return repository.claim_next(
                session,
                queues=slot.queues,
                kinds=slot.kinds,
                owner=owner,
                lease=self._settings.lease_seconds,
                now=self._database.now,
            )

    def _wait(self, rings: int) -> None:
        """Until somebody rings, we are stopping, or it is time for a look of our own."""
        with self._rung:
            self._rung.wait_for(
                lambda: self._rings != rings or self._stopping.is_set(), timeout=self._settings.poll_seconds
            )


def host_id(file: Path) -> str:
    """This machine's name and a random word of its home: two machines may share a name, never a home."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), file.open("x") as new:
        new.write(secrets.token_hex(4))
    return f"{socket.gethostname()}-{file.read_text()}"


def _is_alive(owner: str) -> bool:
    """Whether the process that claimed as "host:pid:slot" on this host still runs. We ourselves hold nothing yet."""
    pid = owner.split(":")[1]
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
