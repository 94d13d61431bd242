"""The whole schema on one page. Times are unix seconds; JSON columns hold what the API shows.

It knows no query: those live in each resource's repository.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    event,
    insert,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Json = dict[str, Any]


class Base(DeclarativeBase):
    """The tables' common parent."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {Json: JSON, float: Double, int: BigInteger, str: String}  # noqa: RUF012 - SQLAlchemy reads a plain dict


class IdempotentMixin:
    """A created thing remembers the `Idempotency-Key` it was created under, in its own transaction."""

    # "{key id}:{Idempotency-Key}"; cleared after a day.
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_sha256: Mapped[str | None]


class ProjectRow(IdempotentMixin, Base):
    """A project: everything below belongs to one, and no query crosses it."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    limits: Mapped[Json] = mapped_column(default=dict)  # app.limits.schemas.Limits: where it differs from the settings
    claimed_at: Mapped[float | None]  # when a worker last took a job of it: who waited longest has the next turn
    created_at: Mapped[float]


class KeyRow(IdempotentMixin, Base):
    """An API key. Only the SHA-256 of the secret is kept."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    # The first of the keys that were rotated into one another: limits of a key hold for all of them together, and what
    # was made by them names this.
    lineage: Mapped[str]
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]  # how the secret begins
    scopes: Mapped[list[str]] = mapped_column(JSON)
    limits: Mapped[Json] = mapped_column(default=dict)  # app.limits.schemas.Limits: its own, beside its project's
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    last_used_at: Mapped[float | None]  # written about once a minute
    revoked_at: Mapped[float | None]


class AuditRow(Base):
    """Who changed what, written in the transaction of the change. It outlives what was changed."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_project", "project_id", "id"), Index("ix_audit_target", "project_id", "target"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[str]  # "operator": by the command line
    action: Mapped[str]  # e.g. job.cancelled
    target: Mapped[str]  # the id of what was changed, or an alias
    data: Mapped[Json]
    created_at: Mapped[float]


class DatasetRow(IdempotentMixin, Base):
    """A dataset: a Parquet file in the store, and what parsing found in it."""

    __tablename__ = "datasets"
    __table_args__ = (Index("ix_datasets_page", "project_id", "id"), Index("ix_datasets_bytes", "bytes"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_lineage: Mapped[str | None]  # of the key that made it, where that is known
    name: Mapped[str]
    file: Mapped[str]  # key in the store
    sha256: Mapped[str]
    bytes: Mapped[int]
    rows: Mapped[int]
    facts: Mapped[Json]  # ml.specs.facts.DatasetFacts
    source: Mapped[Json]  # what was uploaded: file name, format, bytes, sha256
    extra: Mapped[Json] = mapped_column("metadata")
    created_at: Mapped[float]


class JobRow(IdempotentMixin, Base):
    """A job: the truth about one piece of work. Messages only say "there may be work"."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_turn", "status", "queue", "project_id", "created_at", "id"),
        Index("ix_jobs_claim", "status", "queue", "created_at", "id"),
        Index("ix_jobs_lease", "status", "lease_until"),
        # Pages are read in the order of an index, from the cursor on: their time does not grow with the table.
        Index("ix_jobs_page", "project_id", "kind", "id"),
        Index("ix_jobs_page_of_status", "project_id", "kind", "status", "id"),
        Index("ix_jobs_page_of_dataset", "project_id", "dataset_id", "kind", "id"),
        # What /metrics counts, from the index alone.
        Index("ix_jobs_counted", "kind", "status", "fence", "attempts"),
        Index("ix_jobs_waiting", "status", "queue", "queued_at"),
        # A checkpoint is published once; one that failed may be tried again.
        Index(
            "uq_jobs_checkpoint_id",
            "checkpoint_id",
            unique=True,
            sqlite_where=text("status NOT IN ('failed', 'cancelled')"),
            postgresql_where=text("status NOT IN ('failed', 'cancelled')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_lineage: Mapped[str | None]  # of the key that made it, where that is known
    kind: Mapped[str]
    queue: Mapped[str]
    name: Mapped[str]
    dataset_id: Mapped[str]
    spec: Mapped[Json]
    warnings: Mapped[list[str]] = mapped_column(JSON)
    extra: Mapped[Json] = mapped_column("metadata")

    # What a publish job makes a model of, and whose it is. The checkpoint may be forgotten once the job has ended.
    checkpoint_id: Mapped[str | None]
    parent_id: Mapped[str | None]

    traceparent: Mapped[str | None]  # of the request that submitted it, as in the header: its runs join that trace
    queued_at: Mapped[float]  # when it last began to wait for a worker
    status: Mapped[str]  # queued, running, paused, succeeded, failed, cancelled
    wanted: Mapped[str | None]  # cancel or pause, while running
    fence: Mapped[int] = mapped_column(Integer)  # how often it was claimed: an older claim can write nothing
    owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer)  # claims that ended badly without a new checkpoint
    has_progressed: Mapped[bool] = mapped_column(Boolean)  # a checkpoint was stored under the present fence
    events_offset: Mapped[int]  # bytes of the run's events.jsonl already taken over
    event_sequence: Mapped[int]

    progress: Mapped[Json]
    metrics: Mapped[Json]
    error: Mapped[Json | None]
    result: Mapped[Json | None]  # what a job without a model came to
    output: Mapped[str | None]  # the folder of its files in the store, while they are kept
    model_id: Mapped[str | None]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    first_step_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class WorkerRow(Base):
    """A worker that lives, as far as is known: it says so every few seconds, by the database's clock."""

    __tablename__ = "workers"

    owner: Mapped[str] = mapped_column(primary_key=True)  # host:pid
    queues: Mapped[list[str]] = mapped_column(JSON)
    seen_at: Mapped[float]


class EventRow(Base):
    """One line of a job's story. The sequence is taken in the transaction that writes the event."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    level: Mapped[str]
    type: Mapped[str]  # message, metrics, checkpoint, status
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[Json]
    created_at: Mapped[float]


class MetricRow(Base):
    """One value of one series. The key makes a step that is repeated after a resume overwrite itself."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float]
    created_at: Mapped[float]


class CheckpointRow(Base):
    """A checkpoint whose files are in the store and verified."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_bytes", "bytes"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    fence: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    epoch: Mapped[float]
    folder: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]  # of the manifest, which holds the sha256 of every file
    metrics: Mapped[Json]
    created_at: Mapped[float]


class ModelRow(Base):
    """A model: an artifact in the store."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_page", "project_id", "id"), Index("ix_models_bytes", "bytes"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_lineage: Mapped[str | None]  # of the key that made it, where that is known
    job_id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    folder: Mapped[str]
    base_folder: Mapped[str | None]  # what a model shares that stores only its head, or its adapter
    description: Mapped[Json]  # minimand.json
    bytes: Mapped[int]
    extra: Mapped[Json] = mapped_column("metadata")
    created_at: Mapped[float]


class AliasRow(Base):
    """A name of a project that stands for one of its models, which cannot be deleted meanwhile."""

    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    created_at: Mapped[float]
    changed_at: Mapped[float]


class AliasChangeRow(Base):
    """What an alias came to stand for, and by which key. It outlives the alias and the model."""

    __tablename__ = "alias_changes"
    __table_args__ = (Index("ix_alias_changes_name", "project_id", "name", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    model_id: Mapped[str | None]  # none: the alias was deleted
    key_id: Mapped[str]
    created_at: Mapped[float]


class JobMetadataRow(Base):
    """One pair of a job's metadata, by which lists are filtered. The key is in the order of a page."""

    __tablename__ = "job_metadata"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True)


class ModelMetadataRow(Base):
    """The same of a model."""

    __tablename__ = "model_metadata"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, index=True)


class DatasetMetadataRow(Base):
    """The same of a dataset."""

    __tablename__ = "dataset_metadata"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True, index=True)


@event.listens_for(DatasetRow, "after_insert")
@event.listens_for(JobRow, "after_insert")
@event.listens_for(ModelRow, "after_insert")
def _write_pairs(_mapper: object, connection: Connection, row: DatasetRow | JobRow | ModelRow) -> None:
    """A row's pairs are written with it, whoever adds it."""
    if not row.extra:
        return
    pairs = [{"project_id": row.project_id, "key": key, "value": row.extra[key], "id": row.id} for key in row.extra]
    if isinstance(row, JobRow):
        connection.execute(insert(JobMetadataRow), [{"kind": row.kind, **pair} for pair in pairs])
    else:
        connection.execute(insert(ModelMetadataRow if isinstance(row, ModelRow) else DatasetMetadataRow), pairs)
