"""Jobs as a caller sees them: submit, look, wish. Workers go through the repository, under a fence.

It knows no HTTP and no torch.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sqlalchemy.orm import Session

from app.audit.repository import record
from app.base_models.service import BaseModelService
from app.datasets import repository as datasets
from app.datasets.service import DatasetService
from app.db.session import Database
from app.db.tables import CheckpointRow, DatasetRow, EventRow, JobRow, MetricRow
from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.http.idempotency import create_once, find_created, idempotency_of
from app.http.pagination import PageRequest
from app.ids import new_id
from app.jobs import repository
from app.jobs.estimate import check_memory, estimate
from app.jobs.repository import status_event
from app.jobs.schemas import JobValidation
from app.jobs.setups import AnySpec, Asked, models_of, teachers_in, with_model
from app.jobs.states import BULK_KINDS, BULK_QUEUE, ENDED, SHORT_KINDS, SHORT_QUEUE, shown_status
from app.keys.caller import Caller
from app.limits.service import LimitService
from app.models import repository as models
from app.models.service import ModelService
from app.queue import JobQueue
from app.tracing import current_traceparent, describe_job
from ml.bulk.checks import check_pairs, select_rows
from ml.bulk.checks import needed_headers as headers_to_measure
from ml.bulk.report import ERRORS, FileReport
from ml.comparisons import resolve_comparison
from ml.crash_points import crash_point
from ml.resolve import Cells, Resolved, needed_headers, resolve
from ml.specs.bulk import Bulk, ModelEvaluation
from ml.specs.errors import SpecError, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.job import JobKind, JobSpec, Setup
from ml.specs.losses.composition import teachers_of, term_id, terms_of
from ml.tasks.build import TaskState
from ml.tasks.class_weights import weigh_labels

_HAS_LEARNED = (
    "the model was trained on rows of this dataset, and answers those better than others. Set part to test, where the "
    "dataset has a split column."
)


class JobService:
    """The rules of jobs."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        datasets: DatasetService,
        base_models: BaseModelService,
        models: ModelService,
        *,
        limits: LimitService,
        training_queue: str,
        trainer_memory_bytes: int,
    ) -> None:
        self._database = database
        self._queue = queue
        self._datasets = datasets
        self._base_models = base_models
        self._models = models
        self._limits = limits
        self._training_queue = training_queue
        self._memory_limit = trainer_memory_bytes if training_queue == "cpu" else 0  # of a GPU none is known

    def submit(self, caller: Caller, spec: AnySpec, idempotency_key: str | None, *, kind: JobKind) -> JobRow:
        """Check a spec against its dataset and queue it. Raises SpecError; what it returns is stored."""
        request = {"kind": kind, "spec": spec.model_dump(mode="json")}
        idempotency = idempotency_of(caller, idempotency_key, request)
        with self._database.read() as session:
            if (earlier := find_created(session, JobRow, idempotency)) is not None:
                return earlier
        setup, warnings = self._fill_in(caller, self._with_ids(caller, spec))
        row = self._new_row(caller, kind, setup, warnings)

        def insert(session: Session) -> JobRow:
            # What the job needs may have been deleted since it was read; from here on the job keeps it.
            if datasets.find_for_update(session, caller.project_id, spec.dataset) is None:
                raise _no_dataset(spec)
            for pointer, model_id in _lock_models(session, caller, setup).items():
                raise refuse(pointer, f"there is no model '{model_id}'.", "model_not_found")
            self._limits.check_job(session, caller)
            session.add(row)
            session.flush()
            repository.append_events(session, row.id, [status_event("queued", "queued")])
            record(session, caller, "job.submitted", row.id, kind=kind)
            crash_point("job.before_commit")
            return row

        stored = create_once(self._database, JobRow, idempotency, insert)
        crash_point("job.after_commit")
        describe_job(stored.id)
        if stored.id == row.id:
            self._queue.wake(stored.queue)
        crash_point("job.after_wake")
        return stored

    def publish(self, caller: Caller, job_id: str, checkpoint_id: str, idempotency_key: str | None) -> JobRow:
        """Queue the making of a model from a checkpoint, once: a repeat returns the same job, as long as it lives or
        has made the model. NotFoundError for what is not there, ConflictError where it cannot be published.
        """
        request = {"kind": "publish", "job": job_id, "checkpoint": checkpoint_id}
        idempotency = idempotency_of(caller, idempotency_key, request)
        stored = create_once(
            self._database,
            JobRow,
            idempotency,
            lambda session: self._publication(session, caller, job_id, checkpoint_id),
        )
        if stored.status == "queued":
            self._queue.wake(stored.queue)
        return stored

    def _publication(self, session: Session, caller: Caller, job_id: str, checkpoint_id: str) -> JobRow:
        """The job that publishes a checkpoint, added where there is none."""
        parent = self._find(session, caller.project_id, job_id)
        if parent.kind != "training":
            raise ConflictError(
                f"Job '{job_id}' is of kind {parent.kind}, which makes no model: only a training's checkpoints can "
                "be published.",
                code="cannot_publish",
            )
        checkpoint = repository.find_checkpoint_for_update(session, job_id, checkpoint_id)
        if (earlier := repository.find_publication(session, job_id, checkpoint_id)) is not None:
            return earlier
        if checkpoint is None:
            raise NotFoundError(
                f"Job '{job_id}' has no checkpoint '{checkpoint_id}'. The newest ones are kept: GET "
                f"/v1/jobs/{job_id}/checkpoints.",
                code="checkpoint_not_found",
            )
        # From here on the job keeps its dataset, which the model is measured on, and the models it began with.
        if datasets.find_for_update(session, caller.project_id, parent.dataset_id) is None:
            raise ConflictError(
                f"The dataset '{parent.dataset_id}' of job '{job_id}' was deleted, and a model is calibrated and "
                "measured on it.",
                code="dataset_deleted",
            )
        spec = JobSpec.model_validate(parent.spec)
        if gone := _lock_models(session, caller, spec):
            named = ", ".join(f"'{model_id}'" for model_id in gone.values())
            raise ConflictError(
                f"Job '{job_id}' trained further from, or was taught by, {named}, which was deleted: its "
                "checkpoints are nothing without it.",
                code="model_deleted",
            )
        row = self._new_row(caller, "publish", spec, ())
        row.parent_id, row.checkpoint_id = job_id, checkpoint_id
        self._limits.check_job(session, caller)
        session.add(row)
        session.flush()
        told = status_event("queued", f"queued: the checkpoint at step {checkpoint.step} of {job_id}")
        repository.append_events(session, row.id, [told])
        record(session, caller, "job.submitted", row.id, kind=row.kind)
        return row

    def validate(self, caller: Caller, spec: JobSpec) -> JobValidation:
        """What a spec would become, without queueing anything. Raises SpecError."""
        spec = self._with_ids(caller, spec)
        resolved = self._resolve(caller, spec)
        assert resolved.spec.loss is not None, "a resolved spec has a loss"
        dataset = self._datasets.get_row(caller.project_id, spec.dataset)
        base = self._base_of(caller, spec.model)
        labels = resolved.state.labels
        with self._database.read() as session:
            speed = repository.tokens_per_second(session, self._training_queue, base.name)
        weights = {}
        for term in terms_of(resolved.spec.loss):
            found = weigh_labels(getattr(term.loss, "class_weights", None), labels, resolved.train_counts)
            if found is not None:
                weights[term_id(term)] = dict(zip(labels, found.tolist(), strict=True))
        return JobValidation(
            spec=resolved.spec.model_dump(mode="json"),
            task=resolved.state.type,
            train_counts=resolved.train_counts,
            weights=weights,
            estimate=estimate(resolved, self._datasets.facts(dataset), base, tokens_per_second=speed),
            warnings=list(resolved.warnings),
        )

    def get(self, project_id: str, job_id: str, kind: JobKind | None = None) -> JobRow:
        """A project's job, of this kind where one is asked for. Raises NotFoundError."""
        with self._database.read() as session:
            row = self._find(session, project_id, job_id)
        if kind not in (None, row.kind):
            raise NotFoundError(
                f"Job '{job_id}' is of kind {row.kind}, not {kind}: GET /v1/jobs/{job_id}.", code="job_not_found"
            )
        return row

    def list_page(
        self, project_id: str, page: PageRequest, *, filters: Mapping[str, str], metadata: Mapping[str, str]
    ) -> tuple[list[JobRow], bool]:
        """One page of a project's jobs."""
        with self._database.read() as session:
            return repository.list_jobs(session, project_id, page, filters=filters, metadata=metadata)

    def cancel(self, caller: Caller, job_id: str) -> JobRow:
        """Cancel at once where no worker holds the job, else tell its worker. ConflictError once it has ended."""
        with self._database.write() as session:
            row = self._find(session, caller.project_id, job_id, is_locked=True)
            if repository.end_waiting(session, job_id, now=self._database.now):
                told = status_event("cancelled", "cancelled before it ran", cause="requested")
                repository.append_events(session, job_id, [told])
            elif not repository.wish(session, job_id, "cancel") and row.wanted != "cancel":
                raise _illegal(row, "cancelled")
            record(session, caller, "job.cancelled", job_id)
            return self._reread(session, row)

    def pause(self, caller: Caller, job_id: str) -> JobRow:
        """Keep a waiting job from starting, or have its worker write a checkpoint and let go."""
        with self._database.write() as session:
            row = self._find(session, caller.project_id, job_id, is_locked=True)
            if repository.pause_waiting(session, job_id):
                told = status_event("paused", "paused before it ran", cause="requested")
                repository.append_events(session, job_id, [told])
            elif row.status != "paused" and not repository.wish(session, job_id, "pause"):
                raise _illegal(row, "paused")
            record(session, caller, "job.paused", job_id)
            return self._reread(session, row)

    def resume(self, caller: Caller, job_id: str) -> JobRow:
        """Let a paused job go on from its newest checkpoint; withdraw a pause that has not been carried out."""
        with self._database.write() as session:
            row = self._find(session, caller.project_id, job_id, is_locked=True)
            if repository.queue_again(session, job_id, now=self._database.now):
                repository.append_events(session, job_id, [status_event("resumed", "waiting for a worker again")])
            elif row.wanted != "pause" or not repository.wish(session, job_id, None):
                raise _illegal(row, "resumed")
            record(session, caller, "job.resumed", job_id)
            row = self._reread(session, row)
        self._queue.wake(row.queue)
        return row

    def events(
        self, project_id: str, job_id: str, page: PageRequest, after: int | None
    ) -> tuple[list[EventRow], bool, bool]:
        """One page of a job's events, whether more follow, and whether the job has ended (in the same moment)."""
        with self._database.read() as session:
            row = self._find(session, project_id, job_id)
            events, has_more = repository.list_events(session, job_id, page, after)
            return events, has_more, row.status in ENDED

    def event_sequences(self, job_ids: Collection[str]) -> dict[str, int]:
        """See the repository."""
        with self._database.read() as session:
            return repository.event_sequences(session, job_ids)

    def metrics(
        self, project_id: str, job_id: str, page: PageRequest, *, name: str | None
    ) -> tuple[list[MetricRow], bool]:
        """One page of a job's metrics."""
        with self._database.read() as session:
            self._find(session, project_id, job_id)
            return repository.list_metrics(session, job_id, page, name=name, after=_parse_metric_id(page.after))

    def checkpoints(self, project_id: str, job_id: str, page: PageRequest) -> tuple[list[CheckpointRow], bool]:
        """One page of a job's checkpoints."""
        with self._database.read() as session:
            self._find(session, project_id, job_id)
            return repository.list_checkpoints(session, job_id, page)

    def _with_ids(self, caller: Caller, spec: Asked) -> Asked:
        """The spec with ids in the place of aliases: what an alias stands for later changes nothing of a job."""
        names = teachers_in(spec) if spec.model in self._base_models else {"/model": spec.model, **teachers_in(spec)}
        ids = self._models.ids_of({(caller.project_id, name) for name in names.values()})
        for pointer, name in names.items():
            if (model_id := ids.get((caller.project_id, name))) is not None:
                spec = with_model(spec, pointer, model_id)
        return spec

    def output_file(self, project_id: str, job_id: str, kind: JobKind, name: str) -> tuple[str, FileReport]:
        """The key of a file that a job of some kind wrote, and what it is.

        NotFoundError where there is no such job or its files have been removed, ConflictError before it has succeeded.
        """
        row = self.get(project_id, job_id, kind)
        if row.result is None:
            raise ConflictError(
                f"Job '{job_id}' is {shown_status(row.status, row.wanted)}: its files are there once it has succeeded.",
                code="not_succeeded",
            )
        if row.output is None:
            raise NotFoundError(
                f"The files of job '{job_id}' are no longer kept (MINIMAND_OUTPUT_DAYS).", code="output_removed"
            )
        return f"{row.output}/{name}", FileReport.model_validate(row.result["files"][name])

    def _fill_in(self, caller: Caller, spec: AnySpec) -> tuple[AnySpec, Sequence[str]]:
        """The spec with nothing left open, and warnings. Raises SpecError."""
        if isinstance(spec, Bulk):
            return self._fill_in_bulk(caller, spec)
        if isinstance(spec, JobSpec):
            resolved = self._resolve(caller, spec)
            return resolved.spec, resolved.warnings
        comparison = resolve_comparison(spec, *self._look_up(caller, spec))
        arms = tuple(self._check(caller, arm, f"/losses/{place}") for place, arm in enumerate(comparison.arms))
        comparison = replace(comparison, arms=arms)
        return comparison.spec, comparison.warnings

    def _fill_in_bulk(self, caller: Caller, spec: Bulk) -> tuple[Bulk, Sequence[str]]:
        """The spec with its model's id, and warnings. Raises SpecError."""
        try:
            model = self._models.get_row(caller.project_id, spec.model)
        except NotFoundError as error:
            raise refuse("/model", str(error), "model_not_found") from error
        dataset = self._dataset_of(caller, spec)
        facts = self._datasets.facts(dataset)
        check_pairs(facts.columns, takes_pairs=model.description["takes_pairs"])
        spec = spec.model_copy(update={"model": model.id})
        if isinstance(spec, ModelEvaluation):
            cells = self._datasets.read_column_values(dataset, headers_to_measure(spec, facts))
            select_rows(spec, facts, cells, TaskState.model_validate(model.description["task"]))
            has_learned = spec.part != "test" and dataset.sha256 == model.description["dataset_sha256"]
            return spec, [_HAS_LEARNED] if has_learned else []
        empty = (
            f"rows without a text: {facts.empty_texts}, the first is row {facts.first_empty_text}. {ERRORS} has them."
        )
        return spec, [empty] if facts.empty_texts else []

    def _resolve(self, caller: Caller, spec: JobSpec) -> Resolved:
        return self._check(caller, resolve(spec, *self._look_up(caller, spec)), "/loss")

    def _look_up(self, caller: Caller, spec: Setup) -> tuple[DatasetFacts, BaseFacts, Cells]:
        """What a spec is resolved against."""
        base = self._base_of(caller, spec.model)
        dataset = self._dataset_of(caller, spec)
        facts = self._datasets.facts(dataset)
        return facts, base, self._datasets.read_column_values(dataset, needed_headers(spec, facts))

    def _dataset_of(self, caller: Caller, spec: Setup | Bulk) -> DatasetRow:
        try:
            return self._datasets.get_row(caller.project_id, spec.dataset)
        except NotFoundError as error:
            raise _no_dataset(spec) from error

    def _base_of(self, caller: Caller, name: str) -> BaseFacts:
        """What is known of a base model, or of the one that a model of the project came from. Raises SpecError."""
        if not name.startswith("mdl_"):
            return self._base_models.get(name)
        try:
            description = self._models.get_row(caller.project_id, name).description
        except NotFoundError as error:
            raise refuse("/model", f"there is no model '{name}' to train further.", "model_not_found") from error
        if description["head"] == "native" and not description["loads_in_transformers"]:
            raise refuse(
                "/model",
                f"'{name}' cannot be trained further: its weights are not those of a plain encoder and head. Start "
                f"from '{description['base_model']}'.",
                "cannot_continue",
            )
        return self._base_models.get(description["base_model"])

    def _check(self, caller: Caller, resolved: Resolved, pointer: str) -> Resolved:
        """What the dataset cannot tell: whether teachers fit, and whether a step fits into a trainer's memory."""
        self._check_teachers(caller, resolved, pointer)
        told = check_memory(resolved, self._base_of(caller, resolved.spec.model), self._memory_limit)
        return replace(resolved, warnings=(*resolved.warnings, *told))

    def _check_teachers(self, caller: Caller, resolved: Resolved, pointer: str) -> None:
        """A teacher must be a model of this project that is read as the new one will be, over the same labels."""
        assert resolved.spec.loss is not None, "a resolved spec has a loss"
        for place, teacher in teachers_of(resolved.spec.loss).items():
            try:
                task = self._models.get_row(caller.project_id, teacher).description["task"]
            except NotFoundError as error:
                raise refuse(pointer + place, f"there is no model '{teacher}' to teach.", "model_not_found") from error
            if (task["labels"], task["reading"]) != (resolved.state.labels, resolved.state.reading):
                raise refuse(
                    pointer + place,
                    f"the teacher '{teacher}' knows the labels {', '.join(task['labels'])} (read as "
                    f"{task['reading']}), and this job has {', '.join(resolved.state.labels)} "
                    f"({resolved.state.reading}): they must be the same, in the same order.",
                    "teacher_does_not_fit",
                )

    def _new_row(self, caller: Caller, kind: JobKind, spec: AnySpec, warnings: Sequence[str]) -> JobRow:
        now = time.time()
        queues = {**dict.fromkeys(SHORT_KINDS, SHORT_QUEUE), **dict.fromkeys(BULK_KINDS, BULK_QUEUE)}
        return JobRow(
            id=new_id("job"),
            project_id=caller.project_id,
            key_lineage=caller.lineage,
            kind=kind,
            queue=queues.get(kind, self._training_queue),
            name=spec.name,
            dataset_id=spec.dataset,
            spec=spec.model_dump(mode="json"),
            warnings=list(warnings),
            extra=spec.metadata,
            status="queued",
            fence=0,
            attempts=0,
            has_progressed=False,
            events_offset=0,
            event_sequence=0,
            progress={},
            metrics={},
            traceparent=current_traceparent(),
            queued_at=now,
            created_at=now,
        )

    def _find(self, session: Session, project_id: str, job_id: str, *, is_locked: bool = False) -> JobRow:
        find = repository.find_for_update if is_locked else repository.find
        row = find(session, project_id, job_id)
        if row is None:
            raise NotFoundError(f"There is no job '{job_id}'.", code="job_not_found")
        return row

    @staticmethod
    def _reread(session: Session, row: JobRow) -> JobRow:
        session.refresh(row)
        return row


def _lock_models(session: Session, caller: Caller, setup: AnySpec) -> dict[str, str]:
    """Keep the models that a job needs from being deleted. Returns the ids of those that are gone, by JSON pointer.

    In the order of their ids: two transactions that lock the same models must not wait for each other.
    """
    needed = sorted(models_of(setup).items(), key=lambda item: item[1])
    return {
        pointer: model_id
        for pointer, model_id in needed
        if models.find_for_update(session, caller.project_id, model_id) is None
    }


def _no_dataset(spec: Setup | Bulk) -> SpecError:
    message = f"there is no dataset '{spec.dataset}'. GET /v1/datasets lists yours."
    return refuse("/dataset", message, "dataset_not_found")


def _illegal(row: JobRow, what: str) -> ConflictError:
    return ConflictError(
        f"Job '{row.id}' is {shown_status(row.status, row.wanted)} and cannot be {what}.", code="illegal_transition"
    )


def _parse_metric_id(after: str | None) -> tuple[str, int] | None:
    if after is None:
        return None
    name, _, step = after.rpartition("@")
    if not name or not _is_number(step):
        raise InvalidInputError(
            f"'after' is '{after}', and must be the id of a metric, e.g. train/loss@1.",
            code="invalid_cursor",
            param="after",
        )
    return name, int(step)


def parse_event_id(after: str | None) -> int | None:
    """The sequence behind an event's id. Raises InvalidInputError."""
    if after is None:
        return None
    digits = after.removeprefix("evt_")
    if digits == after or not _is_number(digits):
        raise InvalidInputError(
            f"'after' is '{after}', and must be the id of an event, e.g. evt_000000000001.",
            code="invalid_cursor",
            param="after",
        )
    return int(digits)


def _is_number(digits: str) -> bool:
    # Neither the digits of other scripts nor more of them than a database's integer holds.
    return digits.isascii() and digits.isdecimal() and len(digits) <= 18
