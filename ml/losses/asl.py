"""Asymmetric loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.multi_hot import as_multi_hot, mean_over_labels
from ml.models.outputs import Outputs


class AslLoss(Loss):
    """Sigmoid focal with a focusing of its own for each side, and easy negatives left out altogether.

    Formula: −(1 − p)^γ₊ log p for a positive, −q^γ₋ log(1 − q) for a negative, averaged over the labels of a row
        (the authors' code adds them up); the focusing factors are differentiated too.
    Symbols: p = σ(z), q = max(p − m, 0), γ₊ and γ₋ focusing, m the probability below which a negative counts nothing.
    Shapes: logits (B, L), labels (B, L) → (B,).
    Choose it when a text has few of many labels: below 5% of them, or more than 50 labels.
    Paper: Ridnik et al. 2021, arXiv:2009.14119.
    """

    def __init__(self, *, gamma_pos: float, gamma_neg: float, clip: float) -> None:
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.clip = clip

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        logits = outputs.logits
        hot = as_multi_hot(targets, logits)
        log_p, log_not_p = functional.logsigmoid(logits), functional.logsigmoid(-logits)  # (B, L)
        positives = -torch.exp(self.gamma_pos * log_not_p) * log_p
        negatives = -torch.exp(self.gamma_neg * log_p) * log_not_p if self.clip == 0 else self._shifted(logits)
        return mean_over_labels(torch.where(hot > 0.5, positives, negatives), targets)

    def _shifted(self, logits: Tensor) -> Tensor:
        """What each label costs as a negative, m above 0: (B, L)."""
        p = torch.sigmoid(logits)
        counts = p > self.clip
        # A power below 1 has no gradient at 0, so what counts nothing never goes through it.
        q = torch.where(counts, p - self.clip, 0.5)
        rest = torch.where(counts, (torch.sigmoid(-logits) + self.clip).clamp_max(1), 0.5)  # 1 − q, at least m
        return torch.where(counts, -(q**self.gamma_neg) * torch.log(rest), 0.0)
