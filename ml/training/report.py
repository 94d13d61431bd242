"""What a dry run and a comparison say, as JSON. Torch-free, for the service to show it.

It knows not how anything was measured.
"""

from typing import Any

from pydantic import BaseModel, Field


class Spread(BaseModel):
    """A figure over the steps; null where one of them is not finite."""

    mean: float | None
    min: float | None
    max: float | None


class TermReport(BaseModel):
    """One term of the loss."""

    id: str
    loss: str = Field(description="Its type.")
    weight: float = Field(description="What it is multiplied by; of a schedule, the mean over the whole job.")
    value: Spread = Field(description="Of each step, before the weight.")
    gradient_norm: Spread = Field(description="Of this term alone, over all that trains, before the weight.")
    gradient_share: float | None = Field(description="Weight × norm, as a share of that of all terms together.")
    class_shares: dict[str, float] = Field(
        description="How much of the term comes from the rows of each label, the largest first, 50 at most. A row of "
        "several labels counts in parts; a regression's labels are the fifths of the training targets."
    )
    rows_counted: float = Field(description="Share of the rows that count: of supcon, those with a positive.")


class BatchReport(BaseModel):
    """The steps that were tried: those the job would begin with."""

    steps: int
    rows: int
    tokens: int = Field(description="Real ones, of texts cut at max_length.")
    padding_share: float = Field(description="Of the passes over texts; of a frozen job, those of its encoder.")
    seconds_per_step: float = Field(description="One forward and backward pass, on the device of the dry run.")
    estimated_seconds: float = Field(
        description="For all steps of the job on such a device, and the encoding of a frozen job's texts; without "
        "validation and export."
    )
    device: str
    threads: int


class DryRunReport(BaseModel):
    """What a dry run found."""

    terms: list[TermReport]
    batches: BatchReport
    warnings: list[str] = Field(description="What looks wrong, in sentences.")


class Figure(BaseModel):
    """A metric over the seeds, or the folds."""

    mean: float
    std: float = Field(description="Sample standard deviation over the seeds, or the folds.")


class DifferenceReport(BaseModel):
    """A loss against the first one, in the deciding metric."""

    mean: float = Field(description="This loss less the first, over the paired seeds or folds.")
    low: float = Field(
        description="Of the 95% interval, which counts the noise of the seeds and of the rows. Of folds it is wider "
        "than their spread says, as their training rows overlap."
    )
    high: float
    p_value: float = Field(description="Two-sided, after Holm's correction for the number of losses.")
    verdict: str = Field(description='"better", "worse" or "no significant difference" (at 0.05).')


class ArmReport(BaseModel):
    """One loss of a comparison."""

    id: str
    loss: dict[str, Any] = Field(description="As it was resolved.")
    value: Figure | None = Field(description="The deciding metric; null where the loss failed.")
    values: list[float | None] = Field(description="The deciding metric under each seed, or on each fold.")
    difference: DifferenceReport | None = Field(
        None, description="Null for the first loss, for one that failed, and where the rows are too few."
    )
    metrics: dict[str, Figure] = Field(description="All of them, after calibration and thresholds.")
    unfitted: dict[str, Figure] = Field(description="The same before: at temperature 1 and thresholds of one half.")
    pooled: dict[str, float] | None = Field(
        None,
        description="With folds: metrics of all rows at once, each as the run answered that was tested on it. Those of "
        "scores are left out, which every run has on a scale of its own.",
    )
    seconds: float = Field(description="Of its training and measuring, all runs together.")
    error: str | None = Field(description="Why it failed.")


class ComparisonReport(BaseModel):
    """What a comparison found."""

    metric: str = Field(description="What decides.")
    higher_is_better: bool
    part: str = Field(description="What was measured on: test, validation where there is no test part, or folds.")
    rows: int = Field(description="Of that part; of all folds together.")
    train_rows: int = Field(description="Of a run; with folds, the fewest of any.")
    seeds: list[int] = Field(description="Of each run of a loss.")
    folds: int | None = None
    arms: list[ArmReport]
    conclusion: str
