"""Labels as 0 and 1 for each logit, whether they came so or as one of two classes."""

from torch import Tensor

from ml.losses.base import IGNORED, Targets


def as_multi_hot(targets: Targets, logits: Tensor) -> Tensor:
    """Targets as (B, L) in the dtype of the logits. Two classes on one logit: 1 for the second."""
    if targets.labels.ndim == 2:
        return targets.labels.to(logits.dtype)
    return targets.labels.clamp_min(0).to(logits.dtype)[:, None]


def mean_over_labels(losses: Tensor, targets: Targets) -> Tensor:
    """(B, L) → (B,), 0 for an ignored row."""
    means = losses.mean(-1)
    return means if targets.labels.ndim == 2 else means * (targets.labels != IGNORED)
