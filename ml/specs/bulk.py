"""What a model is put to over a whole dataset: the bodies of `POST /v1/prediction_batches` and `POST /v1/evaluations`.

It knows what is asked; what fits a model and a dataset is `ml.bulk.checks`' to say.
"""

from typing import Literal

from pydantic import Field, field_validator

from ml.specs.base import Spec
from ml.specs.job import Metadata


class Bulk(Spec):
    """A model and a dataset."""

    name: str = Field("", max_length=200, description="Of the job. Only shown.")
    model: str = Field(min_length=1, max_length=200, description="Id of a model.")
    dataset: str = Field(min_length=1, max_length=200, description="Id of a dataset.")
    checkpoint_every_seconds: float = Field(
        60, ge=0, le=86_400, description="At least so long apart are the points that an interrupted job goes on from."
    )
    metadata: Metadata = Field(default_factory=dict)


class PredictionBatch(Bulk):
    """Answers for every row of a dataset."""


Perturbation = Literal["typo", "case", "whitespace"]


class ModelEvaluation(Bulk):
    """How good a model is on a dataset, by group, and with texts as careless hands would have written them."""

    part: Literal["train", "validation", "test"] | None = Field(
        None, description="Rows of this split alone, by the dataset's split column; null: every row."
    )
    group_column: str | None = Field(
        None, max_length=1_000, description="A column of the dataset: metrics for each of its values, and their gaps."
    )
    perturbations: list[Perturbation] = Field(
        default_factory=list,
        description="Ways to change every text and measure again. typo: a tenth of the words, one at least, get a "
        "letter left out, put in, exchanged, or changed places with the next. case: all lower, all upper, or each word "
        "capitalised. whitespace: tabs, line breaks and more blanks between words, one gap in ten is lost.",
    )
    seed: int = Field(17, ge=0, le=2**32 - 1, description="Draws the perturbations.")

    @field_validator("perturbations")
    @classmethod
    def _perturbs_each_way_once(cls, value: list[Perturbation]) -> list[Perturbation]:
        if repeated := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"'perturbations' names {', '.join(repeated)} twice: name each once.")
        return value
