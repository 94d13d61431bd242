"""Logit-adjusted cross-entropy."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class LogitAdjustedLoss(Loss):
    """Cross-entropy on logits to which the log of each label's share was added, so that rare labels must win clearer.

    Formula: −log softmax(z + τ log π)_y. In training only: the model answers with z, which is for even priors.
    Symbols: z logits, π_c the share of label c in the training rows, τ strength, y the true class.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it when the commonest label has ten times the rows of the rarest, or more, and macro-F1 counts.
    Paper: Menon et al. 2021, arXiv:2007.07314.
    """

    wants = ("label_counts",)
    log_priors: Tensor

    def __init__(self, *, tau: float, label_counts: Tensor) -> None:
        super().__init__()
        if (label_counts <= 0).any():
            empty = torch.nonzero(label_counts <= 0)[:, 0].tolist()
            raise ValueError(f"logit_adjusted needs training rows of every label; those of number {empty} have 0")
        self.tau = tau
        self.register_buffer("log_priors", torch.log(label_counts.double() / label_counts.double().sum()))

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        adjusted = outputs.logits + self.tau * self.log_priors.to(outputs.logits.dtype)  # (B, C)
        return functional.cross_entropy(adjusted, targets.labels, ignore_index=IGNORED, reduction="none")
