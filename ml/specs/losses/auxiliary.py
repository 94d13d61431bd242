"""Terms that stand beside a task's loss, which fixes how the model is read. Their strength is the term's weight."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ml.specs.losses.base import LossSpec, Need, Reading, TaskType

_ALL: tuple[TaskType, ...] = ("text_classification", "multi_label", "regression", "ordinal")
_OF_LABELS: tuple[TaskType, ...] = ("text_classification", "multi_label", "ordinal")
_OF_ONE_LABEL: tuple[TaskType, ...] = ("text_classification", "ordinal")

# What a term may take for a distribution: one softmax over the logits, or a sigmoid for each. `rank` and the readings
# of regression are none, so r_drop, entropy_min and kd cannot stand beside a loss that is read so.
SOFTMAX_READINGS: frozenset[Reading] = frozenset({"softmax", "scores"})
SIGMOID_READINGS: frozenset[Reading] = frozenset(
    {"sigmoid_pair", "score_pair", "sigmoid", "multi_scores", "cumulative", "conditional"}
)


class RDropSpec(LossSpec):
    """Two dropout masks should give one answer. The paper's α is the term's weight."""

    title: ClassVar[str] = "R-Drop"
    formula: ClassVar[str] = "½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁))"
    paper: ClassVar[str] = "Liang et al. 2021, R-Drop: Regularized Dropout for Neural Networks, arXiv:2106.14448"
    auxiliary_for: ClassVar[tuple[TaskType, ...]] = _OF_LABELS
    needs: ClassVar[frozenset[Need]] = frozenset({"second_forward"})

    type: Literal["r_drop"]


class SupConSpec(LossSpec):
    """Rows of one label should lie closer together than to any other row of the step."""

    title: ClassVar[str] = "Supervised contrastive loss"
    formula: ClassVar[str] = "−1/|P(i)| Σ_{p∈P(i)} log(exp(v_i·v_p / τ) / Σ_{a≠i} exp(v_i·v_a / τ))"
    paper: ClassVar[str] = "Khosla et al. 2020, Supervised Contrastive Learning, arXiv:2004.11362"
    auxiliary_for: ClassVar[tuple[TaskType, ...]] = _OF_ONE_LABEL
    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    is_additive: ClassVar[bool] = False

    type: Literal["supcon"]
    temperature: float = Field(0.1, ge=0.01, le=10, description="τ: lower looks at the nearest rows only.")


class FgmSpec(LossSpec):
    """The task's loss once more, on word embeddings moved a step against it."""

    title: ClassVar[str] = "Fast gradient method"
    formula: ClassVar[str] = "L(x + r, y), r = ε g / ‖g‖₂, g = ∇_x L(x, y)"
    paper: ClassVar[str] = (
        "Miyato et al. 2017, Adversarial Training Methods for Semi-Supervised Text Classification, arXiv:1605.07725"
    )
    auxiliary_for: ClassVar[tuple[TaskType, ...]] = _ALL
    needs: ClassVar[frozenset[Need]] = frozenset({"adversarial"})

    type: Literal["fgm"]
    epsilon: float = Field(1.0, gt=0, le=100, description="ε: the L2 norm of the move, for each row.")


class EntropyMinSpec(LossSpec):
    """Draws decision boundaries away from the rows: a prediction should be sure."""

    title: ClassVar[str] = "Entropy minimisation"
    formula: ClassVar[str] = "−Σ_c p_c log p_c"
    paper: ClassVar[str] = "Grandvalet and Bengio 2004, Semi-supervised Learning by Entropy Minimization"
    auxiliary_for: ClassVar[tuple[TaskType, ...]] = _OF_LABELS

    type: Literal["entropy_min"]


class KdSpec(LossSpec):
    """Learns what another model says of every label, not its first choice alone."""

    title: ClassVar[str] = "Knowledge distillation"
    formula: ClassVar[str] = "T² Σ_c q_c (log q_c − log p_c), q and p at temperature T"
    paper: ClassVar[str] = "Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531"
    auxiliary_for: ClassVar[tuple[TaskType, ...]] = _OF_ONE_LABEL
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    required_example: ClassVar[dict[str, Any]] = {"teacher": "mdl_019a8f3c2b7e5f0a1b2c3d4e5f60718"}

    type: Literal["kd"]
    teacher: str = Field(
        pattern=r"^(mdl_[A-Za-z0-9]{1,64}|[a-z0-9][a-z0-9._-]{0,62})$",
        description="A model of yours with the same labels: its id, or an alias.",
    )
    temperature: float = Field(
        2.0, gt=0, le=100, description="T: higher shows more of how the teacher orders the other labels."
    )
