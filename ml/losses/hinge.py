"""Multi-class hinge loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class HingeLoss(Loss):
    """Every other label's score must stay a margin below the true one's.

    Formula: Σ_{j≠y} max(0, m − z_y + z_j)^p / C.
    Symbols: z scores, y the true class, m margin, p power (1 or 2), C classes.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it when only the order of the scores counts; they are no probabilities.
    Paper: Weston and Watkins 1999.
    """

    def __init__(self, *, margin: float, power: int) -> None:
        super().__init__()
        self.margin = margin
        self.power = power

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        scores, labels = outputs.logits, targets.labels.clamp_min(0)
        violations = (self.margin - scores.gather(-1, labels[:, None]) + scores).clamp_min(0) ** self.power  # (B, C)
        is_true = functional.one_hot(labels, scores.shape[-1]).bool()
        losses = torch.where(is_true, 0.0, violations).sum(-1) / scores.shape[-1]
        return losses * (targets.labels != IGNORED)
