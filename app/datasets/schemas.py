"""Bodies of datasets: what an upload's form may hold, and what is answered."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.db.tables import DatasetRow
from app.http.metadata import Metadata
from ml.recommendation import Recommendation
from ml.specs.facts import MAX_LABELS, RECOGNISED, Columns, DatasetFacts, Role
from ml.specs.losses.base import TaskType

ROW_ID_DIGITS = 9


# Whether they exist is checked against the file; these bounds only keep them short.
RoleName = Annotated[str, StringConstraints(max_length=64)]
HeaderName = Annotated[str, StringConstraints(max_length=1_000)]


class UploadForm(BaseModel):
    """The form fields beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]*$")] | None = None
    columns: Annotated[dict[RoleName, HeaderName], Field(max_length=16)] = Field(default_factory=dict)
    encoding: Annotated[str, StringConstraints(max_length=64)] | None = None
    delimiter: Annotated[str, StringConstraints(max_length=8)] | None = None
    metadata: Metadata = Field(default_factory=dict)


class DatasetSource(BaseModel):
    """The file as it was uploaded."""

    filename: str = Field(description="The name it was sent under. Only shown.", examples=["support.csv"])
    format: str = Field(description="csv, tsv, jsonl or parquet, with .gz after it if compressed.", examples=["csv"])
    bytes: int
    sha256: str


class Dataset(BaseModel):
    """A dataset: uploaded once, never changed."""

    id: str = Field(examples=["ds_019a8f3c2b7e5f0a1b2c3d4e5f60718"])
    object: Literal["dataset"] = "dataset"
    name: str = Field(examples=["support"])
    sha256: str = Field(description="Of the stored Parquet file, which `/content` returns.")
    bytes: int = Field(description="Size of the stored Parquet file.")
    rows: int = Field(examples=[659])
    headers: list[str] = Field(description="Every column, in the file's order.", examples=[["text", "label", "split"]])
    columns: Columns = Field(description="Which column plays which role.")
    recognised: list[Role] = Field(description="Roles that were found by the column's name, not given.")
    labels: dict[str, int] = Field(
        description=f"Rows of each label, most frequent first; empty above {MAX_LABELS:,} labels.",
        examples=[{"order_status": 162, "refund": 124}],
    )
    splits: dict[str, int] = Field(description="Rows of each split; empty without a split column.")
    warnings: list[str] = Field(description="What may surprise you, in sentences.")
    source: DatasetSource
    created_at: float = Field(description="Unix seconds.")
    metadata: Metadata

    @classmethod
    def of(cls, row: DatasetRow) -> "Dataset":
        """The body of a row."""
        facts = DatasetFacts.model_validate(row.facts)
        return cls(
            id=row.id,
            name=row.name,
            sha256=row.sha256,
            bytes=row.bytes,
            rows=row.rows,
            headers=facts.headers,
            columns=facts.columns,
            recognised=facts.recognised,
            labels=facts.labels,
            splits=facts.splits,
            warnings=warnings_about(facts),
            source=DatasetSource.model_validate(row.source),
            created_at=row.created_at,
            metadata=row.extra,
        )


def warnings_about(facts: DatasetFacts) -> list[str]:
    """What a user should know before training on this."""
    found = []
    if facts.empty_texts:
        found.append(_missing(facts.empty_texts, "text", facts.first_empty_text))
    if facts.columns.label is None:
        names = ", ".join(RECOGNISED["label"])
        found.append(
            f"no label column found: none is named {names}. To train on this file, upload it again with "
            'columns={"label": "your column"}.'
        )
    elif facts.missing_labels:
        found.append(_missing(facts.missing_labels, "label", facts.first_missing_label))
    if facts.distinct_labels > MAX_LABELS:
        found.append(f"column '{facts.columns.label}' has too many distinct labels to count (over {MAX_LABELS:,}).")
    if facts.splits and "train" not in facts.splits:
        found.append(f"no row of column '{facts.columns.split}' is in the split train.")
    return found


def _missing(count: int, what: str, first_row: int | None) -> str:
    if count == 1:
        return f"1 row has no {what}: row {first_row}."
    return f"{count:,} rows have no {what}; the first is row {first_row}."


class Alternative(BaseModel):
    """What else to try."""

    loss: dict[str, Any]
    reason: str


class DatasetRecommendation(BaseModel):
    """Which loss to begin with on a dataset, and why."""

    object: Literal["dataset.recommendation"] = "dataset.recommendation"
    dataset: str
    task: TaskType = Field(description='The task it is for: set it in the job spec, as `{"type": …}`.')
    metric: str = Field(description="The metric it is for.")
    loss: dict[str, Any] = Field(
        description="Runs as it stands in a job spec's `loss`.", examples=[{"type": "logit_adjusted", "tau": 1.0}]
    )
    reasons: list[str] = Field(description="Why, in sentences with the figures.")
    evidence: dict[str, Any] = Field(
        description="The figures: of the rows that a split column gives to training, else of all rows."
    )
    alternative: Alternative
    source: list[str] = Field(description="The papers behind it.")

    @classmethod
    def of(cls, dataset_id: str, found: Recommendation) -> "DatasetRecommendation":
        """The body of a recommendation."""
        return cls(
            dataset=dataset_id,
            task=found.task,
            metric=found.metric,
            loss=found.loss,
            reasons=found.reasons,
            evidence=found.evidence,
            alternative=Alternative(loss=found.alternative, reason=found.alternative_reason),
            source=found.source,
        )


class DatasetRowItem(BaseModel):
    """One row, its cells as they came."""

    id: str = Field(examples=["row_000000001"], description="Rows count from 1.")
    object: Literal["dataset.row"] = "dataset.row"
    cells: dict[str, str | None] = Field(
        description="Each column's cell; null where the file had none.",
        examples=[{"text": "my parcel is late", "label": "delivery_problem"}],
    )


def row_id(number: int) -> str:
    """The id of the n-th row, from 1."""
    return f"row_{number:0{ROW_ID_DIGITS}d}"


def row_number(identifier: str) -> int | None:
    """The number in a row's id; None where that is no id of a row."""
    digits = identifier.removeprefix("row_")
    if identifier == digits or len(digits) != ROW_ID_DIGITS or not (digits.isascii() and digits.isdecimal()):
        return None
    return int(digits)
