"""Symmetric cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class SceLoss(Loss):
    """Cross-entropy, and the same with label and prediction exchanged, which wrong labels hardly mislead.

    Formula: α (−log p_y) + β (−A (1 − p_y)).
    Symbols: p = softmax(z), y the true class, A < 0 in place of log 0, α and β weights.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it when 10 to 40 % of the labels are wrong, about evenly over the labels.
    Paper: Wang et al. 2019, arXiv:1908.06112.
    """

    def __init__(self, *, alpha: float, beta: float, log_zero: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.log_zero = log_zero

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        # 0 for an ignored row, whose 1 − p_y is then 0 as well.
        losses = functional.cross_entropy(outputs.logits, targets.labels, ignore_index=IGNORED, reduction="none")
        return self.alpha * losses + self.beta * self.log_zero * torch.expm1(-losses)
