"""Huber loss."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.values import one_value
from ml.models.outputs import Outputs


class HuberLoss(Loss):
    """The squared error near the target, the absolute error away from it.

    Formula: ½(z − y)² where |z − y| ≤ δ, else δ(|z − y| − δ/2).
    Symbols: z the output, y the target (standardised, unless the task says otherwise), δ where it turns linear.
    Shapes: logits (B, 1), labels (B,) → (B,).
    Choose it when more than 1% of the targets are outliers.
    Paper: Huber 1964.
    """

    def __init__(self, *, delta: float) -> None:
        super().__init__()
        self.delta = delta

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        values, wanted = one_value(outputs, targets)
        return functional.huber_loss(values, wanted, reduction="none", delta=self.delta)
