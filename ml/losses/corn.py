"""Conditional ordinal regression."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.levels import levels_passed
from ml.models.outputs import Outputs


class CornLoss(Loss):
    """K − 1 yes-or-no questions, "is it above level k, being above k − 1?", each put to such rows alone.

    Formula: Σ_{k ≤ y} BCE(z_k, [y > k]) over all rows, divided by how many questions they answer; a row answers
        min(y + 1, K − 1).
    Symbols: z_k the logit of P(y > k | y > k − 1), so that P(y > k) is the product of σ(z_0) … σ(z_k); y the level.
    Shapes: logits (B, K − 1), labels (B,) → (B,).
    Choose it when labels are ordered, K is at most about 20, and the metric is the absolute error or kappa.
    Paper: Shi, Cao and Raschka 2021, arXiv:2111.08851.
    """

    wants: ClassVar[tuple[str, ...]] = ("classes",)

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        passed = levels_passed(targets, outputs.logits)  # (B, K − 1)
        losses = functional.binary_cross_entropy_with_logits(outputs.logits, passed, reduction="none")
        levels = torch.arange(losses.shape[-1], device=losses.device)
        is_asked = targets.labels[:, None] >= levels  # an ignored row answers none
        return (losses * is_asked).sum(-1)

    def denominators(self, targets: Targets) -> Tensor:
        """How many questions each row answers; 0 where the label is ignored."""
        answered = (targets.labels + 1).clamp_max(self.classes - 1).double()
        return answered * (targets.labels != IGNORED)
