"""Losses of ordinal: one of K levels 0 … K − 1 a row, and a miss by two counts more than a miss by one."""

from typing import ClassVar, Literal

from pydantic import Field

from ml.specs.losses.base import Head, LossSpec, Reading, TaskType

_CUMULATIVE: dict[TaskType, Reading] = {"ordinal": "cumulative"}
_SOFTMAX: dict[TaskType, Reading] = {"ordinal": "softmax"}


class CoralSpec(LossSpec):
    """K − 1 yes-or-no questions, "is it above level k?", on one score that each question shifts."""

    title: ClassVar[str] = "Consistent rank logits (CORAL)"
    formula: ClassVar[str] = "Σ_k BCE(z_k, [y > k]), k = 0 … K − 2"
    paper: ClassVar[str] = "Cao, Mirjalili and Raschka 2020, Rank Consistent Ordinal Regression, arXiv:1901.07884"
    readings: ClassVar[dict[TaskType, Reading]] = _CUMULATIVE
    head: ClassVar[Head] = "shared"

    type: Literal["coral"]


class CornSpec(LossSpec):
    """K − 1 yes-or-no questions, "is it above level k, being above k − 1?", each learned from such rows alone."""

    title: ClassVar[str] = "Conditional ordinal regression (CORN)"
    formula: ClassVar[str] = "Σ_{k ≤ y} BCE(z_k, [y > k]) over all rows, divided by how many questions they answer"
    paper: ClassVar[str] = (
        "Shi, Cao and Raschka 2021, Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional "
        "Probabilities, arXiv:2111.08851"
    )
    readings: ClassVar[dict[TaskType, Reading]] = {"ordinal": "conditional"}

    type: Literal["corn"]


class CumulativeLinkSpec(LossSpec):
    """Proportional odds: one score, and K − 1 thresholds in order that cut it into levels."""

    title: ClassVar[str] = "Cumulative link (proportional odds)"
    formula: ClassVar[str] = "−log(σ(z_{y−1}) − σ(z_y)), z_k = f − θ_k, z_{−1} = ∞, z_{K−1} = −∞"
    paper: ClassVar[str] = "McCullagh 1980, Regression Models for Ordinal Data"
    readings: ClassVar[dict[TaskType, Reading]] = _CUMULATIVE
    head: ClassVar[Head] = "ordered"

    type: Literal["cumulative_link"]


class SordSpec(LossSpec):
    """Cross-entropy against soft labels that fall off with the distance from the true level."""

    title: ClassVar[str] = "Soft ordinal labels (SORD)"
    formula: ClassVar[str] = "−Σ_k q_k log p_k, q = softmax_k(−s φ(k, y)), φ = |k − y| or (k − y)²"
    paper: ClassVar[str] = "Díaz and Marathe 2019, Soft Labels for Ordinal Regression, CVPR"
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX

    type: Literal["sord"]
    metric: Literal["absolute", "squared"] = Field(
        "absolute", description="φ, the distance of two levels. squared: distant levels get next to nothing."
    )
    scale: float = Field(
        1.0, gt=0, le=100, description="s: how fast a soft label falls off; large: cross-entropy. Usual: 1 to 5."
    )


class Emd2Spec(LossSpec):
    """How far probability has to be moved along the levels, squared."""

    title: ClassVar[str] = "Squared earth mover's distance"
    formula: ClassVar[str] = "Σ_k (Σ_{j ≤ k} p_j − [y ≤ k])²"
    paper: ClassVar[str] = (
        "Hou, Yu and Samaras 2016, Squared Earth Mover's Distance-based Loss for Training Deep Neural Networks, "
        "arXiv:1611.05916"
    )
    readings: ClassVar[dict[TaskType, Reading]] = _SOFTMAX

    type: Literal["emd2"]
