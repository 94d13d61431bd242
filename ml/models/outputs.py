"""What a network gives a loss."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def in_full_precision(tensor: Tensor) -> Tensor:
    """float32 (float64 stays): bf16 logits of (8, −8) would lose a loss of 1.19e-7 altogether."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class Outputs:
    """Of one forward pass, and of the further ones that a loss needs.

    logits: (B, H). embeddings: (B, D), what the head sees. second: the same rows under another dropout mask.
    adversarial: the same rows with their word embeddings moved against the loss.
    """

    logits: Tensor
    embeddings: Tensor
    second: "Outputs | None" = None
    adversarial: "Outputs | None" = None

    def in_full_precision(self) -> "Outputs":
        """The same in float32."""
        return replace(self, logits=in_full_precision(self.logits), embeddings=in_full_precision(self.embeddings))
