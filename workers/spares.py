"""Spare trainers: each has done its imports and waits for a run, so that a job need not wait for them.

A spare serves one job, like any trainer, and holds no claim. It is kept for an environment, which slots may share.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from workers.child import TrainerProcess

log = logging.getLogger(__name__)

# A spare that died younger may have died of its start; trying that again at once would go on for ever.
RESTART_AFTER_SECONDS = 60.0

Environment = Mapping[str, str]


@dataclass
class _Spare:
    process: TrainerProcess
    started_at: float = field(default_factory=time.monotonic)


class Spares:
    """One spare for each environment, but for those whose job has just begun: it needs the processor more."""

    def __init__(self, environments: Iterable[Environment], home: Path, *, nice: int) -> None:
        self._environments = {_key(environment): environment for environment in environments}
        self._home = home
        self._nice = nice
        self._lock = threading.Lock()
        self._wanted = set(self._environments)
        self._spares: dict[_Key, _Spare] = {}
        self._is_stopped = False

    def start_trainer(self, run_directory: Path, environment: Environment) -> TrainerProcess:
        """A trainer at work on a run: the spare, or a new one where there is none or it has died."""
        with self._lock:
            self._wanted.discard(_key(environment))
            spare = self._spares.pop(_key(environment), None)
        if spare is not None:
            if spare.process.give(run_directory):
                return spare.process
            log.warning("a spare trainer had ended with %d; the job starts without it", spare.process.kill())
        return TrainerProcess.start(run_directory, environment, self._nice)

    def refill(self, environment: Environment) -> None:
        """The processor is free, or soon will be: start the next spare of this environment."""
        with self._lock:
            self._wanted |= {_key(environment)} & set(self._environments)
        self.mend()

    def mend(self) -> None:
        """Start the spares that are missing, and those that died anew."""
        with self._lock:
            if self._is_stopped:
                return
            for key in self._wanted:
                if (spare := self._spares.get(key)) is not None:
                    if spare.process.poll() is None or time.monotonic() - spare.started_at < RESTART_AFTER_SECONDS:
                        continue
                    log.warning("a spare trainer ended with %d and is started again", spare.process.kill())
                process = TrainerProcess.start_spare(self._home, self._environments[key], self._nice)
                self._spares[key] = _Spare(process)

    def stop(self) -> None:
        """End every spare at once, and start no more."""
        with self._lock:
            self._is_stopped = True
            for spare in self._spares.values():
                spare.process.kill()
            self._spares.clear()


_Key = frozenset[tuple[str, str]]


def _key(environment: Environment) -> _Key:
    return frozenset(environment.items())
