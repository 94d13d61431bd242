"""Cumulative link, by proportional odds."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs

# Two thresholds nearer than this are pushed apart by a straight line, which the logarithm of their distance becomes.
SMALLEST_GAP = 1e-4


class CumulativeLinkLoss(Loss):
    """One score, and K − 1 thresholds in order that cut it into levels.

    Formula: −log(σ(z_{y−1}) − σ(z_y)), z_{−1} = ∞, z_{K−1} = −∞.
    Symbols: z_k = f − θ_k the logit of P(y > k), which falls with k; f the score, θ thresholds, y the level.
    Shapes: logits (B, K − 1), labels (B,) → (B,).
    Choose it when levels are cuts of one hidden quantity, and their probabilities are wanted.
    Paper: McCullagh 1980.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        labels = targets.labels.clamp_min(0)[:, None]
        # Of every level, the logits of being above the one below it and above itself. (B, K)
        lower = functional.pad(outputs.logits, (1, 0), value=torch.inf).gather(-1, labels)[:, 0]
        upper = functional.pad(outputs.logits, (0, 1), value=-torch.inf).gather(-1, labels)[:, 0]
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b − a}): no difference of two numbers that round to 1.
        log_p = functional.logsigmoid(lower) + functional.logsigmoid(-upper) + _log_one_minus_exp(lower - upper)
        return -log_p * (targets.labels != IGNORED)


def _log_one_minus_exp(gap: Tensor) -> Tensor:
    """log(1 − e^{−x}), and its tangent, nearly, where x is too small or, against the order, below 0."""
    missing = (SMALLEST_GAP - gap).clamp_min(0)
    return torch.log(-torch.expm1(-gap.clamp_min(SMALLEST_GAP))) - missing / SMALLEST_GAP
