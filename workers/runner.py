"""One claimed job from its claim to its end: prepare, watch the child, carry what it tells into the database, finish.

Every write names the claim's fence. When the claim is lost, or the database cannot be reached for most of a lease, the
child is killed and nothing more is written: somebody else has the job by then.
"""

import json
import logging
import math
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import CheckpointRow, JobRow, ModelRow
from app.errors import UnavailableError
from app.ids import new_id
from app.jobs import repository
from app.jobs.repository import Claim, Event, LostClaimError, Released, Why, status_event
from app.settings import Settings
from app.storage import FileStore
from app.tracing import note_checkpoint, note_outcome, run_span
from ml.artifact.description import read_description
from ml.artifact.manifest import DamagedFolderError, folder_bytes, manifest_sha256, verify_folder
from ml.crash_points import crash_point
from workers.child import TrainerProcess
from workers.crashes import read_crash
from workers.events import EventTail, Told
from workers.layout import Layout
from workers.spares import Spares

log = logging.getLogger(__name__)

Written = TypeVar("Written")

LOOK_EVERY_SECONDS = 0.1
WRITE_EVERY_SECONDS = 1.0
MEASURE_EVERY_SECONDS = 5.0

# ml.training's exit statuses: a trainer that ends with one of these has said why, and trying again would not help.
DONE, STOPPED, DISK_FULL = 0, 75, 76
OUT_OF_MEMORY = 77
FINAL = (OUT_OF_MEMORY, 78, 79)


class Runner:
    """Runs claimed jobs, one at a time."""

    def __init__(self, database: Database, store: FileStore, settings: Settings, spares: Spares) -> None:
        self._database = database
        self._store = store
        self._settings = settings
        self._spares = spares

    def run(self, claim: Claim, environment: Mapping[str, str], stopping: threading.Event) -> Released | None:
        """Run one job to its end, or until it is given back; None when it ended or the claim was lost."""
        folder = self._settings.scratch / "runs" / claim.job_id / str(claim.fence)
        for left in folder.parent.glob("*"):  # by a worker that was killed under an earlier claim
            if int(left.name) <= claim.fence:
                shutil.rmtree(left, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            run = _Run(self._database, self._store, self._settings, self._spares, environment, claim, folder)
            return run.carry_out(stopping)
        except LostClaimError:
            log.warning("the claim was lost")
            return None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # it is not empty where a later claim is at work
                folder.parent.rmdir()


class _Run:
    """What one run shares between its steps."""

    def __init__(
        self,
        database: Database,
        store: FileStore,
        settings: Settings,
        spares: Spares,
        environment: Mapping[str, str],
        claim: Claim,
        folder: Path,
    ) -> None:
        self.database, self.store, self.settings = database, store, settings
        self.spares, self.environment = spares, environment
        self.claim, self.folder = claim, folder
        self.prefix = f"jobs/{claim.job_id}/{claim.fence}"
        self.tail = EventTail(folder / "events.jsonl")
        self.checkpoint_ids: dict[str, str] = {}  # by folder name in the run directory
        self.wanted: str | None = None
        self.is_lost = False
        self.renewed_at = self.told_at = self.measured_at = time.monotonic()
        self.started_at = time.time()  # less what the job has run before, once that is known
        self.exceeded: dict[str, Any] | None = None  # the error of a job that takes more than one may

    def carry_out(self, stopping: threading.Event) -> Released | None:
        """Run the job, renewing its lease all the while: files may take longer to move than a lease lasts."""
        over = threading.Event()
        # In a copy of our context: what it logs is about the same job.
        target, name = copy_context().run, f"beat-{self.claim.job_id[-6:]}"
        beat = threading.Thread(target=target, args=(self.beat, over), name=name, daemon=True)
        beat.start()
        try:
            return self.run_child(stopping)
        except LostClaimError:
            raise
        except Exception as error:  # the boundary of a job: whatever went wrong, it goes back to the queue at once
            log.exception("unexpected fault in the runner")
            # A store or a database that is away comes back: a job must not spend its attempts in that moment.
            stopping.wait(self.settings.poll_seconds)
            why = Why("runner_failed", f"its runner failed ({type(error).__name__}); the worker's log tells where")
            return self.release(charge=True, why=why)
        finally:
            over.set()
            beat.join()

    def beat(self, over: threading.Event) -> None:
        """Renew the lease every quarter of it, until the run is over or the claim is lost."""
        lease = self.settings.lease_seconds
        while not over.wait(lease / 4) and not self.is_lost:
            try:
                with self.database.write() as session:
                    self.wanted = repository.renew_lease(session, self.claim, lease=lease, now=self.database.now)
                self.renewed_at = time.monotonic()
            except LostClaimError:
                self.is_lost = True
            except Exception as error:  # the boundary of this thread, which must not end before the run does
                # We end ourselves before the lease does: by then another worker may have the job.
                self.is_lost = time.monotonic() - self.renewed_at > 0.75 * lease
                log.warning("the lease could not be renewed, trying again: %s", type(error).__name__)

    def run_child(self, stopping: threading.Event) -> Released | None:
        """From a claimed row to an end, or back to the queue."""
        with self.database.read() as session:
            job = repository.get_claimed(session, self.claim)
        with run_span(job):
            released = self.run_trainer(job, stopping)
            if released is not None:
                note_outcome(released.status)
            return released

    def run_trainer(self, job: JobRow, stopping: threading.Event) -> Released | None:
        """From an empty run directory to what its trainer came to."""
        self.prepare(job)
        crash_point("run.after_prepare")
        trainer = self.spares.start_trainer(self.folder, self.environment)
        try:
            crash_point("run.after_start")
            status, why = self.watch(trainer, stopping)
        finally:
            trainer.kill()
            self.spares.refill(self.environment)
        if self.exceeded is not None and status != DONE:
            self.fail(self.exceeded)
            return None
        if status == DONE:
            return self.publish(job) if job.kind in ("training", "publish") else self.keep_result()
        if status == -signal.SIGABRT and self.settings.trainer_memory_bytes:
            # Under a memory limit, native code that is refused memory aborts where Python would have said so.
            status = OUT_OF_MEMORY
        if status in FINAL:
            self.fail(_read_error(self.folder, status))
            return None
        is_graceful = status == STOPPED or stopping.is_set() or self.wanted is not None
        if status == DISK_FULL:
            why = Why("disk_full", _read_error(self.folder, status)["message"])
            stopping.wait(self.settings.poll_seconds)  # room may come; it must not cost all attempts in a moment
        return self.release(charge=not is_graceful, why=why or self.how_it_ended(status))

    def how_it_ended(self, status: int) -> Why:
        """Why a trainer ended that did not say so."""
        if status < 0:
            return Why("trainer_died", f"its trainer was killed by {signal.Signals(-status).name}")
        crash = read_crash(self.folder / "log.txt")
        if crash is None:
            return Why("trainer_died", f"its trainer ended with exit status {status}")
        log.error("the trainer crashed: %s in %s", crash.kind, " > ".join(crash.frames))
        return Why("trainer_died", f"its trainer crashed: {crash}")

    # ------------------------------------------------------------------------------------------------------- before

    def prepare(self, job: JobRow) -> None:
        """Make room, and lay out the run directory."""
        with self.database.read() as session:
            checkpoints = repository.newest_checkpoints(session, job.id)
            self.started_at -= repository.seconds_run(session, job.id)
        self.sweep({checkpoint.folder for checkpoint in checkpoints})
        self.checkpoint_ids = Layout(self.database, self.store, self.settings).lay_out(job, checkpoints, self.folder)

    def sweep(self, kept: set[str]) -> None:
        """Remove from the store what a worker that was killed under an earlier claim left there, and no row names."""
        for fence in range(1, self.claim.fence):
            prefix = f"jobs/{self.claim.job_id}/{fence}"
            for key in {f"{prefix}/artifact", f"{prefix}/output", *self.store.children(f"{prefix}/checkpoints")} - kept:
                self.store.delete(key)

    # ------------------------------------------------------------------------------------------------------- during

    def watch(self, trainer: TrainerProcess, stopping: threading.Event) -> tuple[int, Why | None]:
        """Tail, renew and stop until the child has ended. Returns its status, and why we ended it if we did."""
        why: Why | None = None  # and until when the trainer may take to stop
        stop_by = math.inf
        heard_at = time.monotonic()
        while (status := trainer.poll()) is None:
            time.sleep(LOOK_EVERY_SECONDS)
            now = time.monotonic()
            if now - self.told_at >= WRITE_EVERY_SECONDS and self.take_over_events():
                heard_at = now
            if self.is_lost:
                raise LostClaimError(self.claim.job_id)
            if why is None and (stopping.is_set() or self.wanted is not None or self.exceeds(now)):
                if self.exceeded is not None:
                    why = Why("requested", self.exceeded["message"])
                elif self.wanted is None:
                    why = Why("worker_stopped", "the worker was asked to stop")
                else:
                    why = Why("requested", f"it was asked to {self.wanted}")
                stop_by = now + self.settings.stop_timeout_seconds
                trainer.ask_to_stop()
            elif why is not None and now > stop_by:
                words = f"{why.words}, and its trainer did not stop within the time for it"
                return trainer.kill(), replace(why, words=words)
            elif now - heard_at > self.settings.progress_timeout_seconds:
                seconds = self.settings.progress_timeout_seconds
                return trainer.kill(), Why("no_progress", f"its trainer made no progress for {seconds:g} s")
        while not self.take_over_all():
            if self.is_lost:
                raise LostClaimError(self.claim.job_id)
            time.sleep(0.5)
        return status, why

    def exceeds(self, now: float) -> bool:
        """Whether the job takes more time or disk than one may; then `exceeded` says so."""
        if now - self.measured_at < MEASURE_EVERY_SECONDS:
            return False
        self.measured_at = now
        settings = self.settings
        if time.time() > self.started_at + settings.max_job_seconds:
            words = (
                f"the job has run for {settings.max_job_seconds:,.0f} s, and may for no longer "
                "(MINIMAND_MAX_JOB_SECONDS). Train for fewer epochs, or on fewer rows"
            )
            self.exceeded = _job_error("time_limit", words)
        elif (size := _size_of(self.folder)) > settings.max_run_bytes:
            words = (
                f"the job takes {size:,} bytes of disk, and one may take {settings.max_run_bytes:,} "
                "(MINIMAND_MAX_RUN_BYTES). Train on fewer rows, or a smaller model"
            )
            self.exceeded = _job_error("disk_limit", words)
        return self.exceeded is not None

    def take_over_events(self) -> bool:
        """Carry what the child told into the database. True when there was anything."""
        self.told_at = time.monotonic()
        before = self.tail.offset
        is_all = self.take_over_all()
        return not is_all or self.tail.offset != before

    def take_over_all(self) -> bool:
        """Carry every line into the database, in order. False while it is away: what is left is taken next time."""
        lines = self.tail.read()
        told = Told(self.checkpoint_ids)
        try:
            for line, offset in lines:
                if line["type"] != "checkpoint":
                    told.take(line, offset)
                elif self.has_new_checkpoint(line["data"]["folder"]):
                    # What was told before a checkpoint is written before it: its readers see the story in order.
                    self.write_down(told)
                    told = Told(self.checkpoint_ids)
                    self.store_checkpoint(line)
                    self.tail.offset = offset
            self.write_down(told)
        except UnavailableError:
            return False
        return True

    def write_down(self, told: Told) -> None:
        """Write what was told, in one transaction."""
        if told.offset is None:
            return
        with self.database.write() as session:
            wanted = repository.take_over(session, self.claim, told.events, events_offset=told.offset, **told.columns)
            repository.put_metrics(session, self.claim.job_id, told.metrics)
        self.tail.offset = told.offset
        self.wanted = wanted
        if told.is_last_step:
            # What is left (measuring, exporting) keeps one core busy, so the next job's trainer may start beside it.
            self.spares.refill(self.environment)

    def has_new_checkpoint(self, name: str) -> bool:
        """Whether a checkpoint is there and not stored yet; one that newer ones replaced meanwhile is gone."""
        return name not in self.checkpoint_ids and (self.folder / "checkpoints" / name).exists()

    def store_checkpoint(self, line: dict[str, Any]) -> None:
        """Upload a checkpoint, manifest last, then its row; forget the oldest."""
        name, data = line["data"]["folder"], line["data"]
        source = self.folder / "checkpoints" / name
        checkpoint_id = new_id("ckpt")
        key = f"{self.prefix}/checkpoints/{checkpoint_id}"
        try:
            crash_point("checkpoint.before_store")
            self.store.put_folder(source, key)
            crash_point("checkpoint.after_store")
            row = CheckpointRow(
                id=checkpoint_id,
                job_id=self.claim.job_id,
                fence=self.claim.fence,
                step=data["step"],
                epoch=data["epoch"],
                folder=key,
                bytes=folder_bytes(verify_folder(source)),
                sha256=manifest_sha256(source),
                metrics=data["metrics"],
                created_at=line["created_at"],
            )
            told = {"checkpoint_id": checkpoint_id, "step": data["step"]}
            event = Event("checkpoint", line["message"], told, created_at=line["created_at"])
            with self.database.write() as session:
                repository.add_checkpoint(session, self.claim, row, [event])
        except LostClaimError:
            self.store.delete(key)
            raise
        except UnavailableError:
            # Whether the row was written is not known, so its files stay: what no row names is swept at the next claim.
            raise
        except (OSError, DamagedFolderError) as error:
            self.store.delete(key)
            log.warning("checkpoint %s was not stored: %s", name, error)
            return
        crash_point("checkpoint.after_commit")
        self.checkpoint_ids[name] = checkpoint_id
        note_checkpoint(checkpoint_id, data["step"])
        self.forget_old_checkpoints()

    def forget_old_checkpoints(self) -> None:
        with self.database.write() as session:
            old = repository.forget_checkpoints(session, self.claim.job_id, keep=self.settings.keep_checkpoints)
        crash_point("checkpoint.after_forget")
        for row in old:
            self.store.discard(row.folder)  # debris is no reason to stop a healthy trainer

    # -------------------------------------------------------------------------------------------------------- after

    def publish(self, job: JobRow) -> Released | None:
        """Verify and upload the artifact, then end the job and insert the model in one transaction."""
        artifact, base = self.folder / "artifact", self.folder / "base"
        try:
            manifest = verify_folder(artifact)
            description = read_description(artifact)
            crash_point("model.before_store")
            name = description.shared_folder
            base_key = self.store_base(base, name) if name is not None else None
            crash_point("model.after_base")
            key = f"{self.prefix}/artifact"
            self.store.put_folder(artifact, key)
            crash_point("model.after_store")
        except DamagedFolderError as error:
            return self.release(charge=True, why=Why("artifact_damaged", f"its model is damaged: {error}"))
        model = ModelRow(
            id=new_id("mdl"),
            project_id=job.project_id,
            key_lineage=job.key_lineage,
            job_id=job.id,
            name=job.name or job.id,
            folder=key,
            base_folder=base_key,
            description=description.model_dump(),
            bytes=folder_bytes(manifest),
            extra=job.extra,
            created_at=time.time(),
        )

        def finish(session: Session) -> None:
            repository.finish(
                session,
                self.claim,
                status="succeeded",
                now=self.database.now,
                model_id=model.id,
                metrics=description.metrics,
            )
            session.add(model)
            session.flush()
            if name is not None:
                # No sweep takes a shared network away from here on; one may have, since it was found above.
                self.store_base(base, name)
            repository.append_events(session, job.id, [status_event("succeeded", "succeeded", model_id=model.id)])

        try:
            self.persist(finish)
        except LostClaimError:
            # Either another worker has the job, or our own commit was carried out and its answer lost.
            if self.persist(lambda session: session.get(ModelRow, model.id)) is None:
                self.store.delete(key)
                raise
        crash_point("model.after_commit")
        note_outcome("succeeded")
        return None

    def store_base(self, folder: Path, name: str) -> str:
        """Upload a shared network once. Its name is of its content, so who comes second finds the same."""
        key = f"bases/{name}"
        if not self.store.exists(f"{key}/manifest.json"):
            verify_folder(folder)
            self.store.put_folder(folder, key)
        return key

    def keep_result(self) -> Released | None:
        """End a job that makes no model, with what it found, and the files it wrote."""
        output = self.folder / "output"
        key = f"{self.prefix}/output" if output.exists() else None
        try:
            result = json.loads((self.folder / "result.json").read_bytes())
            if key is not None:
                verify_folder(output)
        except (OSError, ValueError, DamagedFolderError) as error:
            why = Why("result_unreadable", f"its result could not be read: {error}")
            return self.release(charge=True, why=why)
        if key is not None:
            crash_point("output.before_store")
            self.store.put_folder(output, key)
            crash_point("output.after_store")

        def finish(session: Session) -> None:
            repository.finish(session, self.claim, status="succeeded", now=self.database.now, result=result, output=key)
            repository.append_events(session, self.claim.job_id, [status_event("succeeded", "succeeded")])

        # The files of a claim that was lost are swept, by the next one or as orphans.
        self.persist(finish)
        note_outcome("succeeded")
        return None

    def fail(self, error: dict[str, Any]) -> None:
        """End the job with an error that trying again would not mend."""
        event = Event("status", f"failed: {error['message']}", {"reason": "failed", "code": error["code"]}, "error")

        def finish(session: Session) -> None:
            repository.finish(session, self.claim, status="failed", now=self.database.now, error=error)
            repository.append_events(session, self.claim.job_id, [event])

        self.persist(finish)
        note_outcome("failed")

    def release(self, *, charge: bool, why: Why) -> Released | None:
        """Give the job back."""
        cap = self.settings.max_attempts
        return self.persist(
            lambda session: repository.release(
                session, self.claim, charge=charge, cap=cap, why=why, now=self.database.now
            )
        )

    def persist(self, write: Callable[[Session], Written]) -> Written:
        """Carry out a last write, again and again while the database is away and the lease still ours."""
        while True:
            try:
                with self.database.write() as session:
                    return write(session)
            except UnavailableError as error:
                if self.is_lost:
                    raise LostClaimError(self.claim.job_id) from error
                time.sleep(0.5)


def _read_error(folder: Path, status: int) -> dict[str, Any]:
    try:
        error: dict[str, Any] = json.loads((folder / "error.json").read_bytes())
    except (OSError, ValueError):
        if status == OUT_OF_MEMORY:
            message = "the trainer ran out of memory (MINIMAND_TRAINER_MEMORY_BYTES). Lower training.max_length."
            return _job_error("out_of_memory", message)
        return _job_error("training_failed", f"the trainer ended with exit status {status} and did not say why")
    return error


def _job_error(code: str, message: str) -> dict[str, Any]:
    return {"message": message, "type": "job_error", "param": None, "code": code}


def _size_of(folder: Path) -> int:
    """Bytes of all files below, links not followed: what was only borrowed from the store is not the job's."""
    sizes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it went meanwhile
            status = path.lstat()
            sizes += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return sizes
