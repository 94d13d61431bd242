"""Losses of text_classification: one label a row, or a distribution over the labels."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ml.specs.losses.base import ClassWeights, Head, LabelWeights, LossSpec, Need, Reading, TaskType

_SOFTMAX: dict[TaskType, Reading] = {"text_classification": "softmax", "ordinal": "softmax"}
_SOFTMAX_OF_LABELS: dict[TaskType, Reading] = {"text_classification": "softmax"}

# How far bootstrap trusts a label unless told.
BOOTSTRAP_BETAS = {"soft": 0.95, "hard": 0.8}


class CrossEntropySpec(LossSpec):
    """The negative log-likelihood of the true label."""

    title: ClassVar[str] = "Cross-entropy"
    formula: ClassVar[str] = "−log p_y"
    paper: ClassVar[str] = "Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.4"
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX

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
    readings: ClassVar[dict[TaskType, Reading]] = {"text_classification": "softmax"}

    type: Literal["focal"]
    gamma: float = Field(2.0, ge=0, le=5, description="Focusing: 0 is cross-entropy. Usual: 1 to 3.")
    alpha: LabelWeights | None = Field(
        None, description="A factor for every label by its name, or null. It is not divided out again."
    )

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha_by_label(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError("alpha is one number: that only rescales the learning rate. Give one per label, or null.")
        return value


class HingeSpec(LossSpec):
    """The multi-class margin: every other label's score must stay `margin` below the true one's."""

    title: ClassVar[str] = "Multi-class hinge loss"
    formula: ClassVar[str] = "Σ_{j≠y} max(0, m − z_y + z_j)^p / C"
    paper: ClassVar[str] = "Weston and Watkins 1999, Support Vector Machines for Multi-Class Pattern Recognition"
    readings: ClassVar[dict[TaskType, Reading]] = {"text_classification": "scores"}

    type: Literal["hinge"]
    margin: float = Field(1.0, gt=0, le=100, description="m: how far apart the scores must be.")
    power: Literal[1, 2] = Field(1, description="p: 2 punishes large violations more.")


class BinaryHingeSpec(LossSpec):
    """The two-label margin on one score."""

    title: ClassVar[str] = "Binary hinge loss"
    formula: ClassVar[str] = "max(0, m − y·z), y = ±1"
    paper: ClassVar[str] = "Cortes and Vapnik 1995, Support-Vector Networks"
    readings: ClassVar[dict[TaskType, Reading]] = {"text_classification": "score_pair"}

    type: Literal["binary_hinge"]
    margin: float = Field(1.0, gt=0, le=100, description="m: how far from 0 the score must be.")


class SoftCrossEntropySpec(LossSpec):
    """Cross-entropy against a distribution over the labels."""

    title: ClassVar[str] = "Cross-entropy with soft labels"
    formula: ClassVar[str] = "−Σ_c q_c log p_c"
    paper: ClassVar[str] = "Peterson et al. 2019, Human Uncertainty Makes Classification More Robust, arXiv:1908.07086"
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX
    takes_soft_labels: ClassVar[bool] = True

    type: Literal["soft_cross_entropy"]
    temperature: float = Field(1.0, gt=0, le=100, description="Divides the logits before the softmax.")


class KlSpec(LossSpec):
    """How far the model's distribution is from the given one. Its gradient is soft cross-entropy's."""

    title: ClassVar[str] = "Kullback-Leibler divergence"
    formula: ClassVar[str] = "Σ_c q_c (log q_c − log p_c)"
    paper: ClassVar[str] = "Kullback and Leibler 1951, On Information and Sufficiency"
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX
    takes_soft_labels: ClassVar[bool] = True

    type: Literal["kl"]
    temperature: float = Field(1.0, gt=0, le=100, description="Divides the logits before the softmax.")


class LogitAdjustedSpec(LossSpec):
    """Cross-entropy that asks a clearer win of rare labels, by their share of the training rows."""

    title: ClassVar[str] = "Logit-adjusted cross-entropy"
    formula: ClassVar[str] = "−log softmax(z + τ log π)_y"
    paper: ClassVar[str] = "Menon et al. 2021, Long-Tail Learning via Logit Adjustment, arXiv:2007.07314"
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS

    type: Literal["logit_adjusted"]
    tau: float = Field(
        1.0,
        gt=0,
        le=2,
        description="τ: strength; 1 aims at the balanced error, → 0 is cross-entropy. π is each label's share of the "
        "training rows. Usual: 1.",
    )


class LdamSpec(LossSpec):
    """Cross-entropy on cosines with a margin for the true label, wider for rare labels."""

    title: ClassVar[str] = "Label-distribution-aware margin loss"
    formula: ClassVar[str] = "−log softmax(s (cos θ − Δ_y e_y))_y, Δ_j = m n_j^(−1/4) / max_k n_k^(−1/4)"
    paper: ClassVar[str] = (
        "Cao et al. 2019, Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, arXiv:1906.07413"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS
    head: ClassVar[Head] = "cosine"

    type: Literal["ldam"]
    max_margin: float = Field(0.5, ge=0, le=2, description="m: margin of the rarest label. Usual: 0.3 to 0.5.")
    scale: float = Field(30.0, gt=0, le=200, description="s: factor on the cosines. Usual: 10 to 30.")
    deferred_epoch: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="From this epoch on, counted from 0, rows are weighted by the effective number of their label "
        "(β 0.9999); null: never. Usual: the last fifth of the epochs.",
    )


class Poly1Spec(LossSpec):
    """Cross-entropy with another weight on the first term of its expansion."""

    title: ClassVar[str] = "Poly-1 loss"
    formula: ClassVar[str] = "−log p_y + ε (1 − p_y)"
    paper: ClassVar[str] = (
        "Leng et al. 2022, PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, "
        "arXiv:2204.12511"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS

    type: Literal["poly1"]
    epsilon: float = Field(1.0, ge=-1, le=10, description="ε: 0 is cross-entropy. Usual: 1 to 2, −1 when too sure.")


class GceSpec(LossSpec):
    """Between cross-entropy and the absolute error: wrong labels mislead it less."""

    title: ClassVar[str] = "Generalised cross-entropy"
    formula: ClassVar[str] = "(1 − p_y^q) / q"
    paper: ClassVar[str] = (
        "Zhang and Sabuncu 2018, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, "
        "arXiv:1805.07836"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS

    type: Literal["gce"]
    q: float = Field(0.7, gt=0, le=1, description="→ 0 is cross-entropy, 1 is 1 − p_y. Usual: 0.5 to 0.8.")


class SceSpec(LossSpec):
    """Cross-entropy, and the same with label and prediction exchanged: wrong labels mislead it less."""

    title: ClassVar[str] = "Symmetric cross-entropy"
    formula: ClassVar[str] = "α (−log p_y) + β (−A (1 − p_y))"
    paper: ClassVar[str] = (
        "Wang et al. 2019, Symmetric Cross Entropy for Robust Learning with Noisy Labels, arXiv:1908.06112"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS

    type: Literal["sce"]
    alpha: float = Field(
        0.1, ge=0, le=100, description="α: weight of cross-entropy. Usual: 0.01 to 6; less resists noise."
    )
    beta: float = Field(1.0, ge=0, le=100, description="β: weight of the exchanged one. Usual: 0.1 to 1.")
    log_zero: float = Field(-4.0, ge=-100, lt=0, description="A: stands in for log 0. Usual: −4 to −6.")

    @model_validator(mode="after")
    def _learns_something(self) -> "SceSpec":
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("'alpha' and 'beta' are both 0: nothing would be learned. Give one a value above 0.")
        return self


class BootstrapSpec(LossSpec):
    """Cross-entropy against the label mixed with what the model itself says."""

    title: ClassVar[str] = "Bootstrapped cross-entropy"
    formula: ClassVar[str] = "−Σ_c t_c log p_c, t = β y + (1 − β) p, or one-hot(argmax p) for p"
    paper: ClassVar[str] = (
        "Reed et al. 2015, Training Deep Neural Networks on Noisy Labels with Bootstrapping, arXiv:1412.6596"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS

    type: Literal["bootstrap"]
    mode: Literal["soft", "hard"] = Field(
        "hard",
        description="hard mixes in the likeliest label; soft the probabilities, as constants, which lowers the "
        "gradient of cross-entropy to β times.",
    )
    beta: float | None = Field(
        None, ge=0, le=1, description="β: trust in the label; 1 is cross-entropy. Null: 0.95 for soft, 0.8 for hard."
    )


class DiceSpec(LossSpec):
    """One minus a smoothed dice score of each label, in which easy rows count less."""

    title: ClassVar[str] = "Self-adjusting dice loss"
    formula: ClassVar[str] = "1/C Σ_c [1 − (2 (1 − p_c)^α p_c y_c + γ) / ((1 − p_c)^α p_c + y_c + γ)]"
    paper: ClassVar[str] = "Li et al. 2020, Dice Loss for Data-imbalanced NLP Tasks, arXiv:1911.02855"
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS

    type: Literal["dice"]
    alpha: float = Field(1.0, ge=0, le=5, description="α: how much less easy rows count; 0: no less. Usual: 0 to 1.")
    gamma: float = Field(1.0, ge=1e-4, le=100, description="γ: smoothing of the score. Usual: 1.")


class ArcFaceSpec(LossSpec):
    """Cross-entropy on cosines, the angle to the true label's vector widened by a margin."""

    title: ClassVar[str] = "ArcFace: additive angular margin"
    formula: ClassVar[str] = "−log(e^(s cos(θ_y + m)) / (e^(s cos(θ_y + m)) + Σ_{j≠y} e^(s cos θ_j)))"
    paper: ClassVar[str] = (
        "Deng et al. 2019, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv:1801.07698"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS
    head: ClassVar[Head] = "cosine"

    type: Literal["arcface"]
    margin_degrees: float = Field(28.6, ge=0, le=90, description="m: added to the angle. Usual: 10 to 30.")
    scale: float = Field(64.0, gt=0, le=200, description="s: factor on the cosines. Usual: 16 to 64.")


class CosFaceSpec(LossSpec):
    """Cross-entropy on cosines, that of the true label lessened by a margin."""

    title: ClassVar[str] = "CosFace: large margin cosine"
    formula: ClassVar[str] = "−log(e^(s (cos θ_y − m)) / (e^(s (cos θ_y − m)) + Σ_{j≠y} e^(s cos θ_j)))"
    paper: ClassVar[str] = (
        "Wang et al. 2018, CosFace: Large Margin Cosine Loss for Deep Face Recognition, arXiv:1801.09414"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS
    head: ClassVar[Head] = "cosine"

    type: Literal["cosface"]
    margin: float = Field(0.35, ge=0, le=1, description="m: taken off the cosine. Usual: 0.1 to 0.4.")
    scale: float = Field(64.0, gt=0, le=200, description="s: factor on the cosines. Usual: 16 to 64.")


class GroupDroSpec(LossSpec):
    """Cross-entropy of the groups, weighted so that the worst come to count most."""

    title: ClassVar[str] = "Group distributionally robust optimisation"
    formula: ClassVar[str] = "Σ_g q_g R_g, q_g ← q_g e^(η R_g) / Σ_h q_h e^(η R_h)"
    paper: ClassVar[str] = (
        "Sagawa et al. 2020, Distributionally Robust Neural Networks for Group Shifts, arXiv:1911.08731"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS
    needs: ClassVar[frozenset[Need]] = frozenset({"groups"})
    is_additive: ClassVar[bool] = False

    type: Literal["group_dro"]
    step_size: float = Field(
        0.01, ge=0, le=1, description="η: how fast weights move to the worst groups; 0: all alike. Usual: 0.001 to 0.1."
    )


class VRexSpec(LossSpec):
    """Mean cross-entropy of the groups, and its variance over them."""

    title: ClassVar[str] = "Variance risk extrapolation"
    formula: ClassVar[str] = "mean_g R_g + β var_g R_g"
    paper: ClassVar[str] = (
        "Krueger et al. 2021, Out-of-Distribution Generalization via Risk Extrapolation, arXiv:2003.00688"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX_OF_LABELS
    needs: ClassVar[frozenset[Need]] = frozenset({"groups"})
    is_additive: ClassVar[bool] = False

    type: Literal["v_rex"]
    beta: float = Field(
        1.0, ge=0, le=10_000, description="β: weight of the variance; 0 is the mean over groups. Usual: 1 to 10."
    )
