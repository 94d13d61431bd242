"""Soft ordinal labels."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class SordLoss(Loss):
    """Cross-entropy against soft labels that fall off with the distance from the true level.

    Formula: −Σ_k q_k log p_k, q = softmax_k(−s φ(k, y)), φ = |k − y| or (k − y)².
    Symbols: p = softmax(z), y the true level, s how fast a soft label falls off; K levels.
    Shapes: logits (B, K), labels (B,) → (B,).
    Choose it when levels are ordered and a distribution over them with any shape is wanted.
    Paper: Díaz and Marathe 2019.
    """

    def __init__(self, *, metric: str, scale: float) -> None:
        super().__init__()
        self.power = {"absolute": 1, "squared": 2}[metric]
        self.scale = scale

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        log_p = functional.log_softmax(outputs.logits, -1)  # (B, K)
        levels = torch.arange(log_p.shape[-1], device=log_p.device)
        distance = (levels - targets.labels.clamp_min(0)[:, None]).abs().to(log_p.dtype) ** self.power
        soft = torch.softmax(-self.scale * distance, -1)
        return -(soft * log_p).sum(-1) * (targets.labels != IGNORED)
