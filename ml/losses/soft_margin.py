"""Multi-label soft margin loss."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.multi_hot import as_multi_hot, mean_over_labels
from ml.models.outputs import Outputs


class SoftMarginLoss(Loss):
    """The logistic loss of each label's margin, averaged over the labels of a row: bce, with nothing to set.

    Formula: log(1 + e^{−y z}).
    Symbols: z logit, y = 1 for a label that is given and −1 for one that is not.
    Shapes: logits (B, L), labels (B, L) → (B,).
    Choose it to match torch's MultiLabelSoftMarginLoss; bce is the same and has weights and smoothing.
    Paper: Friedman, Hastie and Tibshirani 2000.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        sign = 2 * as_multi_hot(targets, outputs.logits) - 1
        return mean_over_labels(-functional.logsigmoid(sign * outputs.logits), targets)
