"""The weight of a term over a run."""

import math

from ml.specs.losses.composition import Weight, WeightSchedule


def weight_at(weight: Weight, progress: float) -> float:
    """The weight when `progress` of all steps (0 to 1) are made."""
    if not isinstance(weight, WeightSchedule):
        return float(weight)
    share = min(max((progress - weight.start) / (weight.end - weight.start), 0.0), 1.0)
    shape = {
        "linear": share,
        "cosine": (1 - math.cos(math.pi * share)) / 2,
        "step": float(share >= 1),
        "warmup": share * share,
    }[weight.schedule]
    return weight.from_ + (weight.to - weight.from_) * shape
