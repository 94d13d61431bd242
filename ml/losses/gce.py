"""Generalised cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class GceLoss(Loss):
    """Between cross-entropy, which learns fast, and the absolute error, which wrong labels hardly mislead.

    Formula: (1 − p_y^q) / q.
    Symbols: p = softmax(z), y the true class; q → 0 is cross-entropy, q = 1 is 1 − p_y.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it when 10 to 40 % of the labels are wrong, about evenly over the labels.
    Paper: Zhang and Sabuncu 2018, arXiv:1805.07836.
    """

    def __init__(self, *, q: float) -> None:
        super().__init__()
        self.q = q

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        # −log p_y, 0 for an ignored row. expm1 keeps the digits that 1 − p^q loses for a small q.
        losses = functional.cross_entropy(outputs.logits, targets.labels, ignore_index=IGNORED, reduction="none")
        return -torch.expm1(-self.q * losses) / self.q
