"""Zero-bounded log-sum-exp and pairwise rank-based loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.multi_hot import as_multi_hot
from ml.models.outputs import Outputs


class ZlprLoss(Loss):
    """Every positive's score above 0, every negative's below: one softmax for each side, with 0 as the threshold.

    Formula: log(1 + Σ_neg e^z) + log(1 + Σ_pos e^{−z}).
    Symbols: z scores; a label is given where z > 0.
    Shapes: logits (B, L), labels (B, L) → (B,).
    Choose it when labels go together, or are many and few of them hold; its scores are no probabilities.
    Paper: Su et al. 2022, arXiv:2208.02955.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        scores = outputs.logits
        is_positive = as_multi_hot(targets, scores) > 0.5
        negatives = scores.masked_fill(is_positive, -torch.inf)
        positives = (-scores).masked_fill(~is_positive, -torch.inf)
        losses = _log_one_plus(negatives) + _log_one_plus(positives)
        return losses if targets.labels.ndim == 2 else losses * (targets.labels != IGNORED)


def _log_one_plus(exponents: Tensor) -> Tensor:
    """log(1 + Σ e^x): (B, L) → (B,). The 1 is an exponent of 0."""
    return torch.logsumexp(functional.pad(exponents, (1, 0)), -1)
