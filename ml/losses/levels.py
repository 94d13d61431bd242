"""Levels as the answers to K − 1 questions, "is it above level k?"."""

import torch
from torch import Tensor

from ml.losses.base import Targets


def levels_passed(targets: Targets, logits: Tensor) -> Tensor:
    """[y > k] for k = 0 … K − 2: (B, K − 1), in the dtype of the logits."""
    levels = torch.arange(logits.shape[-1], device=logits.device)
    return (targets.labels[:, None] > levels).to(logits.dtype)
