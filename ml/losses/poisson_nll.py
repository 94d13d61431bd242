"""Poisson negative log-likelihood."""

import torch
from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.losses.values import one_value
from ml.models.outputs import Outputs

# Beyond e^30, some 10^13, the rate goes on as a straight line: e^z leaves float32 at z = 89, its square at 44.
LINEAR_FROM = 30.0


class PoissonNllLoss(Loss):
    """The output is the logarithm of how many are expected.

    Formula: e^z − y z, without the constant log y!.
    Symbols: z the output, y the count.
    Shapes: logits (B, 1), labels (B,) of counts, at least 0 and not standardised → (B,).
    Choose it when the target counts something, and its spread grows with it.
    Paper: McCullagh and Nelder 1989, chapter 6.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        log_rate, counts = one_value(outputs, targets)
        beyond = (log_rate - LINEAR_FROM).clamp_min(0)
        rate = torch.exp(log_rate.clamp_max(LINEAR_FROM)) * (1 + beyond)
        return rate - counts * log_rate
