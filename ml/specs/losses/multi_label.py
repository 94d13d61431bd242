"""Losses of multi_label: any number of labels a row, a logit each. With two labels some stand on one logit."""

from typing import ClassVar, Literal

from pydantic import Field

from ml.specs.losses.base import LabelWeights, LossSpec, Reading, TaskType

_SIGMOID: dict[TaskType, Reading] = {"multi_label": "sigmoid", "text_classification": "sigmoid_pair"}


class BceSpec(LossSpec):
    """Binary cross-entropy of each label by itself."""

    title: ClassVar[str] = "Binary cross-entropy"
    formula: ClassVar[str] = "−(w y log σ(z) + (1 − y) log(1 − σ(z)))"
    paper: ClassVar[str] = "Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.2"
    readings: ClassVar[dict[TaskType, Reading]] = _SIGMOID

    type: Literal["bce"]
    pos_weight: LabelWeights | None = Field(
        None, description="w: a factor on the positives of each label, by its name (of two labels: of the second)."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Moves targets from 0 and 1 towards one half.")


class SigmoidFocalSpec(LossSpec):
    """Binary cross-entropy that counts a label less the surer the model already is of it."""

    title: ClassVar[str] = "Sigmoid focal loss"
    formula: ClassVar[str] = "−α_t (1 − p_t)^γ log p_t"
    paper: ClassVar[str] = "Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002"
    readings: ClassVar[dict[TaskType, Reading]] = _SIGMOID

    type: Literal["sigmoid_focal"]
    gamma: float = Field(2.0, ge=0, le=5, description="Focusing: 0 is binary cross-entropy.")
    alpha: float | None = Field(
        0.25, ge=0, le=1, description="Weight of the positives, 1 − α of the negatives; null: none."
    )


class AslSpec(LossSpec):
    """Sigmoid focal with a focusing of its own for each side, and easy negatives left out altogether."""

    title: ClassVar[str] = "Asymmetric loss"
    formula: ClassVar[str] = "−(1 − p)^γ₊ log p for a positive, −q^γ₋ log(1 − q) for a negative, q = max(p − m, 0)"
    paper: ClassVar[str] = "Ridnik et al. 2021, Asymmetric Loss For Multi-Label Classification, arXiv:2009.14119"
    readings: ClassVar[dict[TaskType, Reading]] = {"multi_label": "sigmoid"}

    type: Literal["asl"]
    gamma_pos: float = Field(0.0, ge=0, le=8, description="γ₊, focusing of the positives. Usual: 0 or 1.")
    gamma_neg: float = Field(4.0, ge=0, le=8, description="γ₋, focusing of the negatives, at least γ₊. Usual: 2 to 4.")
    clip: float = Field(
        0.05, ge=0, lt=1, description="m: a negative below this probability counts nothing; 0: none. Usual: 0.05."
    )


class ZlprSpec(LossSpec):
    """Every positive's score above 0, every negative's below: one softmax for each side, with 0 as the threshold."""

    title: ClassVar[str] = "Zero-bounded log-sum-exp and pairwise rank-based loss"
    formula: ClassVar[str] = "log(1 + Σ_neg e^z) + log(1 + Σ_pos e^{−z})"
    paper: ClassVar[str] = "Su et al. 2022, ZLPR: A Novel Loss for Multi-label Classification, arXiv:2208.02955"
    readings: ClassVar[dict[TaskType, Reading]] = {"multi_label": "multi_scores"}

    type: Literal["zlpr"]


class DbLossSpec(LossSpec):
    """Focal loss for long tails: rows that frequent labels share count less, and negatives are tolerated sooner."""

    title: ClassVar[str] = "Distribution-balanced loss"
    formula: ClassVar[str] = (
        "r (1 − p)^γ (−log p), p = σ(z − ν) for a positive; r (1 − p)^γ (−log p) / λ, p = σ(−λ(z − ν)) for a negative; "
        "r = α + σ(β((1/n_i) / Σ_pos (1/n_j) − μ)), ν = κ log(N/n_i − 1)"
    )
    paper: ClassVar[str] = (
        "Wu et al. 2020, arXiv:2007.09654; for texts: Huang et al. 2021, Balancing Methods for Multi-label Text "
        "Classification with Long-Tailed Class Distribution, arXiv:2109.04712"
    )
    readings: ClassVar[dict[TaskType, Reading]] = {"multi_label": "sigmoid"}

    type: Literal["db_loss"]
    gamma: float = Field(2.0, ge=0, le=5, description="γ, focusing: 0 is none. Usual: 2.")
    map_alpha: float = Field(0.1, ge=0, le=10, description="α: what the weight of a label is at the least. Usual: 0.1.")
    map_beta: float = Field(10.0, gt=0, le=100, description="β: how steep the weight rises. Usual: 10.")
    map_gamma: float = Field(
        0.9, ge=0, le=1, description="μ: the share of a row at which it rises. Usual: 0.9 for texts, 0.2 for images."
    )
    neg_scale: float = Field(2.0, ge=1, le=10, description="λ: how much sooner a negative is let go. Usual: 2 to 5.")
    init_bias: float = Field(
        0.05, ge=0, le=1, description="κ: how far a label's logit is shifted by its frequency. Usual: 0.05 to 0.1."
    )


class SoftMarginSpec(LossSpec):
    """The logistic loss of each label's margin: binary cross-entropy, with nothing to set."""

    title: ClassVar[str] = "Multi-label soft margin loss"
    formula: ClassVar[str] = "log(1 + e^{−y z}), y = ±1"
    paper: ClassVar[str] = "Friedman, Hastie and Tibshirani 2000, Additive Logistic Regression"
    readings: ClassVar[dict[TaskType, Reading]] = {"multi_label": "sigmoid"}

    type: Literal["soft_margin"]
