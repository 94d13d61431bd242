"""Mean squared error."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.values import one_value
from ml.models.outputs import Outputs


class MseLoss(Loss):
    """The squared error.

    Formula: (z − y)².
    Symbols: z the output, y the target (standardised, unless the task says otherwise).
    Shapes: logits (B, 1), labels (B,) → (B,).
    Choose it when errors are roughly normal and large ones matter most.
    Paper: Bishop 2006, section 3.1.1.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        values, wanted = one_value(outputs, targets)
        return functional.mse_loss(values, wanted, reduction="none")
