"""Bodies of models."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.db.tables import ModelRow
from ml.artifact.description import Serving, Source


class ModelBody(BaseModel):
    """A trained classifier."""

    id: str = Field(examples=["mdl_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["model"] = "model"
    name: str
    job_id: str
    source: Source | None = Field(description="Of a published checkpoint: which, at what step of which training.")
    task: str
    labels: list[str]
    takes_pairs: bool = Field(description="Whether it answers pairs of texts; else single ones.")
    base_model: str
    loss: dict[str, Any] = Field(
        description="As its job resolved it, see `loss` of `JobSpec`. `GET /v1/losses` has the schema of each type."
    )
    metrics: dict[str, dict[str, float]]
    serving: Serving
    bytes: int = Field(description="Of its own files; a shared encoder is not counted.")
    created_at: float
    metadata: dict[str, str]

    @classmethod
    def of(cls, row: ModelRow) -> "ModelBody":
        """The body of a row."""
        description = row.description
        return cls(
            id=row.id,
            name=row.name,
            job_id=row.job_id,
            source=description.get("source"),
            task=description["task"]["type"],
            labels=description["task"]["labels"],
            takes_pairs=description["takes_pairs"],
            base_model=description["base_model"],
            loss=description["spec"]["loss"],
            metrics=description["metrics"],
            serving=description["serving"],
            bytes=row.bytes,
            created_at=row.created_at,
            metadata=row.extra,
        )


class ModelReport(BaseModel):
    """How well a model did, label by label, on the test part (or validation, where there was no test part)."""

    id: str
    object: Literal["model.report"] = "model.report"
    metrics: dict[str, dict[str, float]]
    report: dict[str, Any] = Field(
        description="By task. With labels: `labels`, of each its precision, recall, f1 and rows. With one label a text "
        "also `confusion`, of `labels` and `matrix`, whose rows are the truth and columns the answers (null above 200 "
        "labels), and, where scores are probabilities, `reliability`, bins of lower, upper, rows, confidence and "
        "accuracy. Of a regression: `quantiles_of_error`, of answer less truth, and `rows`. `part` says what was "
        "measured: test, or validation."
    )
    serving: Serving

    @classmethod
    def of(cls, row: ModelRow) -> "ModelReport":
        """The report of a row."""
        description = row.description
        return cls(
            id=row.id,
            metrics=description["metrics"],
            report=description["report"],
            serving=description["serving"],
        )
