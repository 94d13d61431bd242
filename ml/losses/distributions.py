"""Labels as distributions over the classes, whether they came so or as one class each."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Targets


def as_distribution(targets: Targets, classes: int, like: Tensor) -> Tensor:
    """Targets as (B, C) probabilities in the dtype of `like`; an ignored row is all zeros."""
    if targets.labels.ndim == 2:
        return targets.labels.to(like.dtype)
    one_hot = functional.one_hot(targets.labels.clamp_min(0), classes).to(like.dtype)
    return one_hot * (targets.labels >= 0)[:, None]
