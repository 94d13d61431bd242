"""What a network gives a loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """logits: (B, C)."""

    logits: Tensor

    def in_full_precision(self) -> "Outputs":
        """The same in float32 (float64 stays): bf16 logits of (8, −8) would lose a loss of 1.19e-7 altogether."""
        return Outputs(self.logits if self.logits.dtype == torch.float64 else self.logits.float())
