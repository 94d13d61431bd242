"""Pinball loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.models.outputs import Outputs


class PinballLoss(Loss):
    """An output for each quantile of the target, averaged over the quantiles.

    Formula: mean over τ of max(τ(y − z_τ), (τ − 1)(y − z_τ)).
    Symbols: z_τ the output of quantile τ, y the target; Q quantiles.
    Shapes: logits (B, Q), labels (B,) → (B,).
    Choose it when a range is wanted beside the value, and the spread differs from text to text.
    Paper: Koenker and Bassett 1978.
    """

    quantiles: Tensor

    def __init__(self, *, quantiles: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("quantiles", torch.tensor(quantiles, dtype=torch.float64))

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        quantiles = self.quantiles.to(outputs.logits.dtype)
        above = targets.labels.to(outputs.logits.dtype)[:, None] - outputs.logits  # (B, Q)
        return torch.maximum(quantiles * above, (quantiles - 1) * above).mean(-1)
