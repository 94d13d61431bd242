"""Squared earth mover's distance."""

import torch
from torch import Tensor

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class Emd2Loss(Loss):
    """How far probability has to be moved along the levels, squared.

    Formula: Σ_k (Σ_{j ≤ k} p_j − [y ≤ k])².
    Symbols: p = softmax(z), y the true level; K levels.
    Shapes: logits (B, K), labels (B,) → (B,).
    Choose it when far misses must be rare; it is bounded by K − 1, so mislabelled rows pull less than in cross-entropy.
    Paper: Hou, Yu and Samaras 2016, arXiv:1611.05916.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        reached = torch.softmax(outputs.logits, -1).cumsum(-1)  # (B, K)
        levels = torch.arange(reached.shape[-1], device=reached.device)
        wanted = (targets.labels[:, None] <= levels).to(reached.dtype)
        return ((reached - wanted) ** 2).sum(-1) * (targets.labels != IGNORED)
