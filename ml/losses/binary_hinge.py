"""Binary hinge loss."""

from torch import Tensor

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class BinaryHingeLoss(Loss):
    """The score of the second label must pass a margin, on the right side of 0.

    Formula: max(0, m − y z), y = 1 for the second label and −1 for the first.
    Symbols: z the score, m margin.
    Shapes: logits (B, 1), labels (B,) of 0 and 1 → (B,).
    Choose it for two labels when only the decision counts.
    Paper: Cortes and Vapnik 1995.
    """

    def __init__(self, *, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        sign = targets.labels * 2 - 1
        return (self.margin - sign * outputs.logits[:, 0]).clamp_min(0) * (targets.labels != IGNORED)
