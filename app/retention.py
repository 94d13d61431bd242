"""Takes away what is kept no longer: old checkpoints and outputs, files that no row names, what a killed process left.

It knows rows and files, and no HTTP. Rows go first, files second. A file is taken for an orphan only when it is old:
whoever stores one writes its row afterwards.
"""

import fcntl
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from sqlalchemy import select

from app.db.session import Database
from app.db.tables import CheckpointRow, DatasetRow, JobRow, ModelRow
from app.http.idempotency import release_all_expired
from app.jobs import repository as jobs
from app.models import repository as models
from app.periodic import Periodic
from app.settings import Settings
from app.storage import FileStore

DAY_SECONDS = 86_400.0
ORPHAN_SECONDS = DAY_SECONDS  # far longer than it takes to store a file and write its row
SWEEP_SECONDS = 3600.0
LOOK_SECONDS = 300.0
# What the service stores, and where. All else below the store's root is somebody else's.
FOLDERS = ("bases", "datasets", "jobs")
_UNIT = re.compile(
    r"(?P<unit>.*?/\.tmp-[^/]+"  # a file that was never finished
    r"|bases/[^/]+|datasets/[^/]+|jobs/[^/]+/[^/]+/(?:artifact|output|checkpoints/[^/]+))(?:/.*)?"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removal:
    """One thing that goes."""

    what: Literal["checkpoint of an ended job", "files of an ended job", "named by no row", "left in scratch"]
    name: str  # key in the store, or path on this machine
    bytes: int

    def __str__(self) -> str:
        return f"{self.what}: {self.name}, {self.bytes} bytes"


@dataclass
class _Pile:
    """Files that stay or go as one."""

    bytes: int = 0
    changed_at: float = 0.0  # the newest

    def add(self, file_bytes: int, changed_at: float) -> None:
        self.bytes += file_bytes
        self.changed_at = max(self.changed_at, changed_at)


class Retention:
    """The rules of what stays."""

    def __init__(
        self, database: Database, store: FileStore, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._store = store
        self._scratch = settings.scratch
        self._checkpoint_seconds = settings.checkpoint_days * DAY_SECONDS
        self._output_seconds = settings.output_days * DAY_SECONDS
        self._clock = clock

    def sweep(self, *, is_dry: bool = False) -> Iterator[Removal]:
        """Remove what is kept no longer, one thing at a time, and say so; when dry, only say so.

        Any number of processes may sweep at once.
        """
        yield from self._sweep_checkpoints(is_dry)
        yield from self._sweep_outputs(is_dry)
        yield from self._sweep_store(is_dry)
        yield from self.sweep_runs(is_dry=is_dry)
        yield from self._sweep_scratch(is_dry)
        if not is_dry:
            with self._database.write() as session:
                release_all_expired(session)
            for folder in FOLDERS:
                self._store.remove_empty_folders(folder, before=self._clock() - ORPHAN_SECONDS)

    def _sweep_checkpoints(self, is_dry: bool) -> Iterator[Removal]:
        """Those of jobs that ended long ago: nothing goes on from them any more."""
        with self._database.read() as session:
            old = jobs.checkpoints_of_ended(session, before=self._clock() - self._checkpoint_seconds)
        for job_id, rows in groupby(old, key=lambda row: row.job_id):
            forgotten = list(rows)
            if not is_dry:
                with self._database.write() as session:
                    forgotten = jobs.forget_checkpoints(session, job_id, keep=0)
            for row in forgotten:
                if not is_dry:
                    self._store.discard(row.folder)
                yield Removal("checkpoint of an ended job", row.folder, row.bytes)

    def _sweep_outputs(self, is_dry: bool) -> Iterator[Removal]:
        """Those of jobs that ended long ago; what they came to stays."""
        before = self._clock() - self._output_seconds
        with self._database.read() as session:
            old = jobs.outputs_of_ended(session, before=before)
        for job_id, folder in old.items():
            pile = _Pile()
            for file in self._store.files(folder):
                pile.add(file.bytes, file.changed_at)
            if not is_dry:
                with self._database.write() as session:
                    jobs.forget_output(session, job_id)
                self._store.discard(folder)
            yield Removal("files of an ended job", folder, pile.bytes)

    def _sweep_store(self, is_dry: bool) -> Iterator[Removal]:
        piles: dict[str, _Pile] = {}
        for folder in FOLDERS:
            for file in self._store.files(folder):
                if (unit := _unit_of(file.key)) is not None:
                    piles.setdefault(unit, _Pile()).add(file.bytes, file.changed_at)
        # Read after the files were listed: of what was stored in between, neither file nor row is seen.
        named = self._named_units()
        for unit, pile in sorted(piles.items()):
            if unit not in named and self._is_old(pile) and (is_dry or self._remove(unit)):
                yield Removal("named by no row", unit, pile.bytes)

    def _named_units(self) -> set[str | None]:
        columns = (DatasetRow.file, CheckpointRow.folder, JobRow.output, ModelRow.folder, ModelRow.base_folder)
        with self._database.read() as session:
            return {_unit_of(key) for column in columns for key in session.scalars(select(column)) if key is not None}

    def _remove(self, unit: str) -> bool:
        """False where the files must stay after all."""
        if not unit.startswith("bases/"):
            self._store.discard(unit)
            return True
        # A job may come to an end that stands on this encoder, however old it is. See `store_base` of a worker.
        with self._database.write() as session:
            if models.is_base_named(session, unit):
                return False
            self._store.discard(unit)
        return True

    def sweep_runs(self, *, is_dry: bool = False) -> Iterator[Removal]:
        """Run directories whose claim is over, as a worker leaves them that is killed. A claim comes before its
        directory, so there is no need to wait."""
        runs = list(self._scratch.glob("runs/*/*"))
        with self._database.read() as session:  # after the directories were listed
            held = {f"{claim.job_id}/{claim.fence}" for claim in jobs.running_claims(session)}
        for path in runs:
            if f"{path.parent.name}/{path.name}" not in held:
                pile = _measure(path)
                if not is_dry:
                    _remove_path(path)
                yield Removal("left in scratch", str(path), pile.bytes)

    def _sweep_scratch(self, is_dry: bool) -> Iterator[Removal]:
        """What else a process of this home left there when it was killed."""
        for path in (path for names in ("uploads/*", "spool/*", "download-*") for path in self._scratch.glob(names)):
            pile = _measure(path)
            if self._is_old(pile):
                if not is_dry:
                    _remove_path(path)
                yield Removal("left in scratch", str(path), pile.bytes)

    def _is_old(self, pile: _Pile) -> bool:
        return pile.changed_at < self._clock() - ORPHAN_SECONDS


class Sweeper(Periodic):
    """Sweeps once an hour, in one process of a home at a time."""

    def __init__(self, retention: Retention, home: Path) -> None:
        super().__init__("sweeping", LOOK_SECONDS)
        self._retention = retention
        self._lock = home / "sweep.lock"

    def run_once(self) -> None:
        """Sweep if it is time, and nobody else is at it. The lock file's time is that of the last sweep."""
        with self._lock.open("a") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime < SWEEP_SECONDS:
                return
            for removed in self._retention.sweep():
                log.info("removed %s", removed)
                if self._stopping.is_set():
                    return
            os.utime(self._lock)


def _unit_of(key: str) -> str | None:
    """The part of a key that stays or goes as a whole; None for a file that the service does not store."""
    found = _UNIT.fullmatch(key)
    return found and found["unit"]


def _measure(path: Path) -> _Pile:
    pile = _Pile()
    below = [f"{at}/{name}" for at, folders, files in os.walk(path) for name in (*folders, *files)]
    for name in (str(path), *below):
        with suppress(FileNotFoundError):  # its process lives, and has just removed it
            status = os.lstat(name)
            pile.add(status.st_size if stat.S_ISREG(status.st_mode) else 0, status.st_mtime)
    return pile


def _remove_path(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.parent.parent.name == "runs":
        with suppress(OSError):  # it holds the run of another claim
            path.parent.rmdir()
