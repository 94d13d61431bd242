"""Logits as distributions: one over the classes, or one over no and yes for each logit. It knows no labels."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.specs.losses.auxiliary import SIGMOID_READINGS, SOFTMAX_READINGS


def check_reading(reading: str, loss: str) -> None:
    """Raises ValueError where outputs that are read so are no distribution."""
    if reading not in SOFTMAX_READINGS | SIGMOID_READINGS:
        raise ValueError(f"'{loss}' compares distributions, and outputs that are read as '{reading}' are none")


def log_states(logits: Tensor, reading: str) -> Tensor:
    """(B, H) → logarithms of probabilities (B, V, S): V variables of S states each."""
    if reading in SIGMOID_READINGS:
        return torch.stack([functional.logsigmoid(-logits), functional.logsigmoid(logits)], -1)  # (B, H, 2)
    return functional.log_softmax(logits, -1)[:, None]  # (B, 1, H)


def mean_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) averaged over the variables: twice (B, V, S) → (B,)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
