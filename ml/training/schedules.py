"""The learning rate over the steps, as a share of the full one."""

import math

from ml.specs.optimizers import (
    Constant,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    Linear,
    OneCycle,
    Polynomial,
    Schedule,
)


def learning_rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step, counted from 0, of a run of `steps`.

    It reaches 1 with the first step after warm-up, and its end after the last step: no step is made in vain.
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        if isinstance(schedule, OneCycle):
            return _half_cosine(schedule.start_factor, 1.0, step / warmup)
        return (step + 1) / (warmup + 1)
    made, whole = step - warmup, max(1, steps - warmup)
    match schedule:
        case Constant():
            return 1.0
        case Linear():
            return 1 - made / whole
        case Cosine():
            return _half_cosine(1.0, 0.0, made / whole)
        case CosineRestarts():
            return _half_cosine(1.0, 0.0, schedule.cycles * made % whole / whole)
        case Polynomial():
            return schedule.end_factor + (1 - schedule.end_factor) * math.pow(1 - made / whole, schedule.power)
        case InverseSqrt():
            return math.sqrt((warmup + 1) / (step + 1))
        case OneCycle():
            return _half_cosine(1.0, schedule.end_factor, made / whole)


def _half_cosine(start: float, end: float, share: float) -> float:
    """From start to end, level at both."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
