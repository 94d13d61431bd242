"""Gaussian negative log-likelihood."""

import torch
from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.models.outputs import Outputs

# e^30 squared still fits float32, and as a factor on a standardised target's variance it says "anything".
LOG_VARIANCE_LIMIT = 30.0


class GaussianNllLoss(Loss):
    """A mean and a variance for each row: rows that the model holds for uncertain pull less.

    Formula: ½(log σ² + (y − μ)²/σ²), without the constant ½ log 2π.
    Symbols: μ the first output, log σ² the second (kept within ±30), y the target.
    Shapes: logits (B, 2), labels (B,) → (B,).
    Choose it when a deviation is wanted beside the value, and errors are roughly normal.
    Paper: Nix and Weigend 1994.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        mean = outputs.logits[:, 0]
        log_variance = outputs.logits[:, 1].clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        error = targets.labels.to(mean.dtype) - mean  # (B,)
        return (log_variance + error**2 * torch.exp(-log_variance)) / 2
