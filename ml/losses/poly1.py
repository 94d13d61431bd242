"""Poly-1 loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class Poly1Loss(Loss):
    """Cross-entropy with another weight on the first term of its expansion in powers of 1 − p_y.

    Formula: −log p_y + ε (1 − p_y).
    Symbols: p = softmax(z), y the true class, ε what is added to the first coefficient, which is 1.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it as a small change to cross-entropy: ε > 0 makes the model surer, ε < 0 less sure.
    Paper: Leng et al. 2022, arXiv:2204.12511.
    """

    def __init__(self, *, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        # 0 for an ignored row, whose 1 − p_y is then 0 as well.
        losses = functional.cross_entropy(outputs.logits, targets.labels, ignore_index=IGNORED, reduction="none")
        return losses - self.epsilon * torch.expm1(-losses)
