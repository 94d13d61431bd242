"""Mean absolute error."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.values import one_value
from ml.models.outputs import Outputs


class MaeLoss(Loss):
    """The absolute error.

    Formula: |z − y|.
    Symbols: z the output, y the target (standardised, unless the task says otherwise).
    Shapes: logits (B, 1), labels (B,) → (B,).
    Choose it when outliers should pull less than in the squared error.
    Paper: Hastie, Tibshirani and Friedman 2009, section 10.6.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        values, wanted = one_value(outputs, targets)
        return functional.l1_loss(values, wanted, reduction="none")
