"""Binary cross-entropy."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.multi_hot import as_multi_hot, mean_over_labels
from ml.models.outputs import Outputs


class BceLoss(Loss):
    """Binary cross-entropy of each label by itself, averaged over the labels of a row.

    Formula: −(w y log σ(z) + (1 − y) log(1 − σ(z))), y smoothed to y (1 − ε) + ε/2.
    Symbols: z logit, y 0 or 1, w a factor on the positives of each label, ε label smoothing.
    Shapes: logits (B, L), labels (B, L); or logits (B, 1), labels (B,) of 0 and 1 → (B,).
    Choose it when a text may have any number of labels.
    Paper: Bishop 2006, section 4.3.2.
    """

    pos_weight: Tensor | None

    def __init__(self, *, pos_weight: Tensor | None, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("pos_weight", pos_weight)

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        logits = outputs.logits
        hot = as_multi_hot(targets, logits)
        smoothed = hot * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = None if self.pos_weight is None else self.pos_weight.to(logits.dtype)[-logits.shape[-1] :]
        losses = functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none", pos_weight=weight)
        return mean_over_labels(losses, targets)
