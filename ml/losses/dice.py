"""Self-adjusting dice loss."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.distributions import as_distribution
from ml.models.outputs import Outputs


class DiceLoss(Loss):
    """One minus a smoothed dice score of each label, in which probabilities near 1 count little.

    Formula: 1/C Σ_c [1 − (2 (1 − p_c)^α p_c y_c + γ) / ((1 − p_c)^α p_c + y_c + γ)].
    Symbols: p = softmax(z), y the label as a one-hot row, α how much easy rows count less, γ smoothing, C classes;
    the weight (1 − p_c)^α is a constant to the gradient.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it when F1 counts and most rows are easy ones of a common label. It is bounded, so it learns slower than
    cross-entropy from rows that are far off, and its value says little: watch the metrics.
    Paper: Li et al. 2020, arXiv:1911.02855.
    """

    def __init__(self, *, alpha: float, gamma: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        p = functional.softmax(outputs.logits, -1)  # (B, C)
        y = as_distribution(targets, p.shape[-1], p)
        # (1 − p) p is the same for p and 1 − p. Were the weight learned through, two labels at α = 1 would give right
        # and wrong rows the same loss and the same slope: nothing would be learned.
        eased = (1 - p.detach()) ** self.alpha * p
        losses = 1 - (2 * eased * y + self.gamma) / (eased + y + self.gamma)
        return losses.mean(-1) * (targets.labels != IGNORED)
