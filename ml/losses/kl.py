"""Kullback-Leibler divergence from soft labels."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.distributions import as_distribution
from ml.models.outputs import Outputs


class KlLoss(Loss):
    """How far the model's distribution is from the given one.

    Formula: Σ_c q_c (log q_c − log p_c), p = softmax(z / T), 0 log 0 = 0.
    Symbols: z logits, q the given distribution, T temperature.
    Shapes: logits (B, C), labels (B, C) or (B,) → (B,).
    Choose it over soft cross-entropy when 0 should mean a perfect fit; the gradients are the same.
    Paper: Kullback and Leibler 1951.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        log_p = functional.log_softmax(outputs.logits / self.temperature, -1)  # (B, C)
        q = as_distribution(targets, log_p.shape[-1], log_p)
        q_log_q: Tensor = torch.special.xlogy(q, q)
        return (q_log_q - q * log_p).sum(-1)
