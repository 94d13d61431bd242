"""Focal loss over a softmax."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class FocalLoss(Loss):
    """Cross-entropy that counts a row less the surer the model already is of it.

    Formula: −α_y (1 − p_y)^γ log p_y, averaged over the rows of the step.
    Symbols: p = softmax(z), y the true class, γ focusing, α a factor for each class (1 without).
    Shapes: logits (B, C), targets (B,) → (B,).
    Choose it when many easy rows drown a few hard ones. γ = 0 without α is cross-entropy.
    Paper: Lin et al. 2017, arXiv:1708.02002.
    """

    alpha: Tensor | None

    def __init__(self, *, gamma: float, alpha: Tensor | None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("alpha", alpha)

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        counted = targets.labels != IGNORED
        labels = targets.labels.clamp_min(0)
        log_p = functional.log_softmax(outputs.logits, -1)  # (B, C)
        log_p_true = log_p.gather(-1, labels[:, None])[:, 0]  # (B,)
        # log(1 − p_y) as the log-sum of the other classes: it stays finite, and so does its gradient, where p_y
        # rounds to 1; (1 − p_y)^γ has none there for γ < 1.
        is_true = functional.one_hot(labels, log_p.shape[-1]).bool()
        log_p_others = torch.logsumexp(log_p.masked_fill(is_true, -torch.inf), -1)  # (B,)
        losses = -torch.exp(self.gamma * log_p_others) * log_p_true
        if self.alpha is not None:
            losses = losses * self.alpha.to(losses.dtype)[labels]
        return losses * counted
