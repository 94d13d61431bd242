"""What a tuning still does once training has begun: after each step, to the loss, and at the end."""

from typing import Any

from torch import Tensor


class Tuner:
    """Nothing: what trained are the base's own weights."""

    def end_step(self, step: int, steps: int) -> None:
        """Follow the optimizer's step number `step` of `steps`. Its gradients are still there."""

    def penalty(self) -> Tensor | None:
        """What comes to the loss of a step."""
        return None

    def fold(self) -> bool:
        """Bring what was learned into the base's own weights. False where they cannot express it."""
        return True


class LastingTuner(Tuner):
    """What was put into the network stays there."""

    def fold(self) -> bool:
        """It cannot be."""
        return False


class MergingTuner(Tuner):
    """What peft put beside the base's matrices becomes part of them."""

    def __init__(self, peft: Any) -> None:
        self.peft = peft  # it holds the model, and so must not be a module inside it

    def fold(self) -> bool:
        """Merge."""
        self.peft.merge_and_unload()
        return True
