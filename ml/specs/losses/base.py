"""What every loss says of itself, and the fields that several of them share.

It knows no tensor: `ml.losses` holds one file for each spec.
"""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag

from ml.specs.base import Spec

TaskType = Literal["text_classification", "multi_label", "regression", "ordinal"]

# How a model's outputs are read in a task: see ml.tasks.readings. It fixes the width of the head as well.
Reading = Literal[
    "softmax",  # C logits → probabilities
    "scores",  # C scores; the highest wins, none is a probability
    "sigmoid_pair",  # two labels on one logit → probabilities
    "score_pair",  # two labels on one score, by its sign
    "sigmoid",  # L logits → a probability each
    "multi_scores",  # L scores; those above 0 are given
    "value",  # one number
    "log_rate",  # the logarithm of an expected count
    "normal",  # mean and log variance
    "quantiles",  # one number for each quantile
    "cumulative",  # K − 1 logits of P(y > k)
    "conditional",  # K − 1 logits of P(y > k | y > k − 1)
    "rank",  # one number, rounded to a level
]

# What a loss wants from the loop besides logits and labels.
Need = Literal["embeddings", "second_forward", "adversarial", "teacher", "groups"]

# The last layer: linear; cosine of the angle to each label's vector; one score shifted by K − 1 thresholds.
Head = Literal["linear", "cosine", "shared", "ordered"]


class LossSpec(Spec):
    """What every loss says of itself."""

    title: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]
    # The tasks the loss is valid for, and how a model trained with it is read there.
    readings: ClassVar[dict[TaskType, Reading]] = {}
    # An auxiliary term stands beside a task's loss, in these tasks, and leaves the reading to it.
    auxiliary_for: ClassVar[tuple[TaskType, ...]] = ()
    needs: ClassVar[frozenset[Need]] = frozenset()
    head: ClassVar[Head] = "linear"
    # False where the rows of a step are coupled: the step is then never cut.
    is_additive: ClassVar[bool] = True
    # True where labels may be distributions: {label: probability}.
    takes_soft_labels: ClassVar[bool] = False

    # A value for each field without a default, for the example.
    required_example: ClassVar[dict[str, Any]] = {}

    type: str

    @classmethod
    def example(cls) -> dict[str, Any]:
        """The loss as a job spec may hold it: its type, and every field that has a plain default."""
        fields = {
            name: info.get_default()
            for name, info in cls.model_fields.items()
            if name != "type" and not info.is_required() and info.get_default() is not None
        }
        return {"type": get_args(cls.model_fields["type"].annotation)[0], **cls.required_example, **fields}

    @classmethod
    def tasks(cls) -> tuple[TaskType, ...]:
        """The tasks the loss is valid for."""
        return cls.auxiliary_for or tuple(cls.readings)


class EffectiveNumber(Spec):
    """Cui et al. 2019: (1 − β) / (1 − β^n) for a label with n training rows, rescaled to mean 1."""

    scheme: Literal["effective_number"]
    beta: float = Field(0.999, ge=0, lt=1, description="0 weighs every label the same; → 1 approaches 1/n.")


LabelWeights = Annotated[
    dict[str, Annotated[float, Field(gt=0, le=1e6, description="Weight of this label.")]],
    Field(min_length=1, description="A weight for every label, by its name."),
]


# A tag stands in the location of an error beside the keys of the body: in brackets none is taken for such a key.
def _kind_of_weights(value: Any) -> str:
    if isinstance(value, EffectiveNumber) or (isinstance(value, dict) and isinstance(value.get("scheme"), str)):
        return "<scheme>"
    return "<labels>" if isinstance(value, dict) else "<name>"


ClassWeights = Annotated[
    Annotated[Literal["balanced"], Tag("<name>")]
    | Annotated[EffectiveNumber, Tag("<scheme>")]
    | Annotated[LabelWeights, Tag("<labels>")],
    Discriminator(_kind_of_weights),
]
