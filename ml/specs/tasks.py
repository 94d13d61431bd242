"""What may be learned from a label column."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ml.specs.base import OfType, Spec


class _Labelled(Spec):
    labels: list[str] | None = Field(None, min_length=2, description="Every label of the dataset, in your order.")

    @model_validator(mode="after")
    def _each_label_once(self) -> "_Labelled":
        labels = self.labels or []
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        if repeated:
            raise ValueError(f"labels names {', '.join(repeated)} more than once.")
        return self


class TextClassification(_Labelled):
    """One label for each text, or a distribution over them."""

    type: Literal["text_classification"] = "text_classification"


class MultiLabel(_Labelled):
    """Any number of labels for each text: a cell is a JSON list of them."""

    type: Literal["multi_label"] = "multi_label"


class Ordinal(_Labelled):
    """One label for each text, of labels with an order: `labels` gives it, lowest first (numbers sort themselves)."""

    type: Literal["ordinal"] = "ordinal"


class Regression(Spec):
    """A number for each text."""

    type: Literal["regression"] = "regression"
    standardize: bool | None = Field(
        None, description="Train on (y − mean) / deviation of the training rows. Null: yes, but for counts."
    )


Task = Annotated[
    TextClassification | MultiLabel | Regression | Ordinal,
    Field(discriminator="type"),
    OfType("text_classification", allows_bare_names=False),
]
