"""What a job over a whole dataset comes to. It holds no texts, only figures and what its files are."""

from typing import Any

from pydantic import BaseModel, Field

from ml.evaluation.groups import FEWEST_ROWS

OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


class RequestCounts(BaseModel):
    """Rows by what became of them. Until all are done, some are neither."""

    total: int
    completed: int = Field(description="Those of output.jsonl.")
    failed: int = Field(description="Those of errors.jsonl.")


class FileReport(BaseModel):
    """A file that can be downloaded."""

    bytes: int
    sha256: str


class PredictionBatchReport(BaseModel):
    """What a prediction batch came to."""

    request_counts: RequestCounts
    files: dict[str, FileReport] = Field(description=f"{OUTPUT} and {ERRORS}, by name.")


class GroupReport(BaseModel):
    """The rows that have one value in the group column."""

    value: str | None = Field(description="Null for rows whose cell is empty.")
    rows: int
    is_small: bool = Field(description=f"Whether they are fewer than {FEWEST_ROWS}, and so left out of the gaps.")
    metrics: dict[str, float]


class GapReport(BaseModel):
    """The largest difference of a metric between two groups."""

    gap: float = Field(description="The metric in the highest group less that in the lowest.")
    lowest: str | None = Field(description="Value of the group.")
    highest: str | None


class PerturbationReport(BaseModel):
    """The same rows, with their texts changed in one way."""

    type: str
    texts_changed: int = Field(description="Texts that had something to change.")
    answers_changed: float = Field(
        description="Share of the rows whose label, or set of labels, became another, or whose number moved by more "
        "than a tenth of the standard deviation of all numbers."
    )
    metrics: dict[str, float]
    difference: dict[str, float] = Field(description="Of each metric, from the texts as they are.")


class EvaluationReport(BaseModel):
    """How good a model is on a dataset."""

    request_counts: RequestCounts
    metrics: dict[str, float]
    report: dict[str, Any] = Field(description="As `report` of `ModelReport`, without `part`.")
    groups: list[GroupReport] = Field(description="The largest first; empty without a group column.")
    gaps: dict[str, GapReport] = Field(description="By metric, between groups that are not small.")
    perturbations: list[PerturbationReport]
    files: dict[str, FileReport] = Field(description=f"{OUTPUT} and {ERRORS}, by name.")
