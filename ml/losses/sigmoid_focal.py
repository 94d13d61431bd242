"""Sigmoid focal loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.multi_hot import as_multi_hot, mean_over_labels
from ml.models.outputs import Outputs


class SigmoidFocalLoss(Loss):
    """Binary cross-entropy that counts a label less the surer the model already is of it.

    Formula: −α_t (1 − p_t)^γ log p_t, averaged over the labels of a row.
    Symbols: p_t = σ(z) of a positive, 1 − σ(z) of a negative; α_t = α, 1 − α; γ focusing.
    Shapes: logits (B, L), labels (B, L); or logits (B, 1), labels (B,) of 0 and 1 → (B,).
    Choose it when most labels are easy negatives.
    Paper: Lin et al. 2017, arXiv:1708.02002.
    """

    def __init__(self, *, gamma: float, alpha: float | None) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        hot = as_multi_hot(targets, outputs.logits)
        towards = outputs.logits * (2 * hot - 1)  # the logit of the true side
        log_p, log_not_p = functional.logsigmoid(towards), functional.logsigmoid(-towards)
        # (1 − p)^γ by its logarithm, which stays finite where p rounds to 1.
        losses = -torch.exp(self.gamma * log_not_p) * log_p
        if self.alpha is not None:
            losses = losses * (self.alpha * hot + (1 - self.alpha) * (1 - hot))
        return mean_over_labels(losses, targets)
