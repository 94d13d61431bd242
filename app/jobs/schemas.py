"""Bodies of jobs, events, metrics and checkpoints."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.db.tables import CheckpointRow, EventRow, JobRow, MetricRow
from app.http.errors import ErrorDetail
from app.jobs.estimate import Estimate
from app.jobs.states import CAUSES, shown_status
from ml.bulk.report import EvaluationReport, PredictionBatchReport, RequestCounts
from ml.training.report import ComparisonReport, DryRunReport

Report = DryRunReport | ComparisonReport | PredictionBatchReport | EvaluationReport


class Progress(BaseModel):
    """How far a job is."""

    step: int = Field(0, description="Of a prediction batch or an evaluation, a text.")
    steps: int | None = Field(None, description="Null until the trainer has counted them.")
    epoch: float = 0
    epochs: int | None = None
    eta_seconds: float | None = None
    loss: float | None = Field(None, description="Of the newest step.")
    step_seconds: float | None = Field(None, description="Mean of the last steps, with what was measured between them.")
    memory_bytes: int | None = Field(None, description="The most that its trainer held of its device.")
    device: str | None = Field(None, description="cpu or cuda.")
    request_counts: RequestCounts | None = Field(
        None, description="Of a prediction batch or an evaluation: its rows so far, also where it ended early."
    )


class PublishedFrom(BaseModel):
    """A checkpoint and its job."""

    job_id: str
    checkpoint_id: str

    @classmethod
    def of(cls, row: JobRow) -> "PublishedFrom | None":
        """What a job publishes; None of other kinds."""
        if row.parent_id is None or row.checkpoint_id is None:
            return None
        return cls(job_id=row.parent_id, checkpoint_id=row.checkpoint_id)


class JobBody(BaseModel):
    """A job."""

    id: str = Field(examples=["job_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["job"] = "job"
    kind: str = Field(
        description="training, dry_run, comparison, publish, prediction_batch or evaluation; more kinds may come."
    )
    name: str
    source: PublishedFrom | None = Field(description="Of a publish job: the checkpoint it makes a model of.")
    status: str = Field(
        description="queued, running, succeeded, failed, cancelled or paused; cancelling or pausing while a running "
        "job is asked to. Treat it as open: words may be added."
    )
    dataset: str
    spec: dict[str, Any] = Field(
        description="The resolved spec: every default filled in. By kind a `Comparison`, a `PredictionBatch` or a "
        "`ModelEvaluation`, of the others a `JobSpec`; one that was stored by an older version is as it was then."
    )
    model_id: str | None = Field(description="The model it published, once it succeeded.")
    result: Report | None = Field(
        description="What a dry run, a comparison or an evaluation found, or a prediction batch came to; null for a "
        "training, and until there is one."
    )
    error: ErrorDetail | None
    attempts: int = Field(description="Attempts that ended badly without a new checkpoint.")
    progress: Progress
    metrics: dict[str, dict[str, float]] = Field(description="Of the final weights, by part.")
    warnings: list[str]
    created_at: float
    started_at: float | None
    first_step_at: float | None
    finished_at: float | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, row: JobRow) -> "JobBody":
        """The body of a row."""
        return cls(
            id=row.id,
            kind=row.kind,
            name=row.name,
            source=PublishedFrom.of(row),
            status=shown_status(row.status, row.wanted),
            dataset=row.dataset_id,
            spec=row.spec,
            model_id=row.model_id,
            result=None if row.result is None else _REPORTS[row.kind].model_validate(row.result),
            error=None if row.error is None else ErrorDetail.model_validate(row.error),
            attempts=row.attempts,
            progress=Progress.model_validate(row.progress),
            metrics=row.metrics,
            warnings=row.warnings,
            created_at=row.created_at,
            started_at=row.started_at,
            first_step_at=row.first_step_at,
            finished_at=row.finished_at,
            metadata=row.extra,
        )


_REPORTS: dict[str, type[Report]] = {
    "dry_run": DryRunReport,
    "comparison": ComparisonReport,
    "prediction_batch": PredictionBatchReport,
    "evaluation": EvaluationReport,
}


class JobValidation(BaseModel):
    """What a spec would become, and cost."""

    object: Literal["job.validation"] = "job.validation"
    spec: dict[str, Any] = Field(description="The resolved spec, a `JobSpec`: every default filled in.")
    task: str = Field(description="Found out from the dataset's columns, unless the spec says it.")
    train_counts: dict[str, int] = Field(description="Training rows by label; empty for a regression.")
    weights: dict[str, dict[str, float]] = Field(description="By term: the weight of each label, where it has weights.")
    estimate: Estimate
    warnings: list[str]


class EventBody(BaseModel):
    """One line of a job's story."""

    id: str = Field(examples=["evt_000000000007"])
    object: Literal["job.event"] = "job.event"
    created_at: float
    level: str = Field(description="info, warning or error.")
    type: str = Field(description="message, metrics, checkpoint or status.")
    message: str
    data: dict[str, Any] = Field(
        description="For programs. Of a status event: `reason` (queued, claimed, resumed, requeued, paused, cancelled, "
        "succeeded or failed), what became of the job; and where it was given back, paused, cancelled, or failed after "
        f"too many attempts, `cause`: {', '.join(CAUSES)}. Treat both as open.",
        examples=[{"reason": "requeued", "cause": "trainer_died"}],
    )

    @classmethod
    def of(cls, row: EventRow) -> "EventBody":
        """The body of a row."""
        return cls(
            id=event_id(row.sequence),
            created_at=row.created_at,
            level=row.level,
            type=row.type,
            message=row.message,
            data=row.data,
        )


def event_id(sequence: int) -> str:
    """The id of a job's n-th event."""
    return f"evt_{sequence:012d}"


class MetricBody(BaseModel):
    """One value of a series."""

    id: str
    object: Literal["job.metric"] = "job.metric"
    step: int
    name: str = Field(examples=["train/loss"])
    value: float
    created_at: float

    @classmethod
    def of(cls, row: MetricRow) -> "MetricBody":
        """The body of a row."""
        return cls(
            id=metric_id(row.name, row.step), step=row.step, name=row.name, value=row.value, created_at=row.created_at
        )


def metric_id(name: str, step: int) -> str:
    """The id of a value: its series and its step."""
    return f"{name}@{step}"


class CheckpointBody(BaseModel):
    """A stored, verified state of a run."""

    id: str = Field(examples=["ckpt_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["checkpoint"] = "checkpoint"
    job_id: str
    step: int
    epoch: float
    metrics: dict[str, float]
    bytes: int
    sha256: str = Field(description="Of its manifest, which holds the sha256 of every file.")
    created_at: float

    @classmethod
    def of(cls, row: CheckpointRow) -> "CheckpointBody":
        """The body of a row."""
        names = ("id", "job_id", "step", "epoch", "metrics", "bytes", "sha256", "created_at")
        return cls(**{name: getattr(row, name) for name in names})
