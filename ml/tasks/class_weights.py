"""Weights by label, worked out from what the spec says and the training rows of each label."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ml.specs.losses.base import EffectiveNumber


def weigh_labels(
    weights: str | EffectiveNumber | Mapping[str, float] | None, labels: Sequence[str], counts: Mapping[str, int]
) -> NDArray[np.float64] | None:
    """Return (C,) weights in the order of `labels`, or None for none.

    balanced: n / (C · n_y), so that every label weighs the same in all. effective_number: (1 − β)/(1 − β^n_y),
    rescaled to mean 1 (Cui et al. 2019). Every count must be at least 1 for these two.
    """
    if weights is None:
        return None
    rows = np.array([counts[label] for label in labels], np.float64)
    if isinstance(weights, EffectiveNumber):
        effective = (1 - weights.beta) / (1 - weights.beta**rows)
        return np.asarray(effective / effective.mean())
    if isinstance(weights, Mapping):
        return np.array([weights[label] for label in labels], np.float64)
    return np.asarray(rows.sum() / (len(labels) * rows))
