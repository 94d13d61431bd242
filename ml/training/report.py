"""What a dry run says, as JSON. Torch-free, so that the service can show it; it knows not how it was measured."""

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
