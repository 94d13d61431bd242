"""What a user may ask of a loss. Each class is the only home of its loss's defaults, formula, tasks and paper.

It knows no tensor: `ml.losses` holds one file for each class here.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ml.specs.base import Spec

TaskType = Literal["text_classification"]


class EffectiveNumber(Spec):
    """Cui et al. 2019: (1 − β) / (1 − β^n) for a label with n training rows, rescaled to mean 1."""

    scheme: Literal["effective_number"]
    beta: float = Field(0.999, ge=0, lt=1, description="0 weighs every label the same; → 1 approaches 1/n.")


LabelWeights = Annotated[
    dict[str, Annotated[float, Field(gt=0, le=1e6, description="Weight of this label.")]],
    Field(min_length=1, description="A weight for every label, by its name."),
]


# A tag stands in the location of an error beside the keys of the body: in brackets none is taken for such a key.
def _kind_of_weights(value: Any) -> str | None:
    if isinstance(value, str):
        return "<name>"
    if isinstance(value, EffectiveNumber) or (isinstance(value, dict) and isinstance(value.get("scheme"), str)):
        return "<scheme>"
    return "<labels>" if isinstance(value, dict) else "<name>"


ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("<name>")]
    | Annotated[EffectiveNumber, Tag("<scheme>")]
    | Annotated[LabelWeights, Tag("<labels>")],
    Discriminator(_kind_of_weights),
]


class LossSpec(Spec):
    """What every loss says of itself."""

    title: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]
    tasks: ClassVar[tuple[TaskType, ...]]


class CrossEntropySpec(LossSpec):
    """The negative log-likelihood of the true label."""

    title: ClassVar[str] = "Cross-entropy"
    formula: ClassVar[str] = "−log p_y"
    paper: ClassVar[str] = "Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.4"
    tasks: ClassVar[tuple[TaskType, ...]] = ("text_classification",)

    type: Literal["cross_entropy"]
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all labels. Usual: 0.05 to 0.1."
    )
    class_weights: ClassWeights | None = Field(
        None,
        description='"balanced" (rows / (labels × rows of the label)), {"scheme": "effective_number", "beta": 0.999}, '
        "or a weight for every label by its name. The step's loss is divided by the weights of its rows.",
    )


class FocalSpec(LossSpec):
    """Cross-entropy that counts a row less the surer the model already is of it."""

    title: ClassVar[str] = "Focal loss"
    formula: ClassVar[str] = "−α_y (1 − p_y)^γ log p_y"
    paper: ClassVar[str] = "Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002"
    tasks: ClassVar[tuple[TaskType, ...]] = ("text_classification",)

    type: Literal["focal"]
    gamma: float = Field(2.0, ge=0, le=5, description="Focusing: 0 is cross-entropy. Usual: 1 to 3.")
    alpha: LabelWeights | None = Field(
        None, description="A factor for every label by its name, or null. It is not divided out again."
    )


def _spell_out(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Loss = Annotated[
    CrossEntropySpec | FocalSpec,
    Field(discriminator="type"),
    BeforeValidator(_spell_out),
]
