"""Smooth L1 loss."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.values import one_value
from ml.models.outputs import Outputs


class SmoothL1Loss(Loss):
    """The absolute error, rounded off near the target.

    Formula: (z − y)²/(2β) where |z − y| < β, else |z − y| − β/2.
    Symbols: z the output, y the target (standardised, unless the task says otherwise), β where it turns linear.
    Shapes: logits (B, 1), labels (B,) → (B,).
    Choose it over huber to keep the size of the gradient when the width changes: it is huber(δ = β) / β.
    Paper: Girshick 2015, arXiv:1504.08083.
    """

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        values, wanted = one_value(outputs, targets)
        return functional.smooth_l1_loss(values, wanted, reduction="none", beta=self.beta)
