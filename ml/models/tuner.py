"""What a tuning still does once training has begun: after each step, to the loss, and at the end."""

from typing import Any

import torch
from torch import Tensor, nn


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


class LowRankTuner(MergingTuner):
    """What peft put beside a matrix is of low rank: W + s·B·A."""

    def term_of(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """(r, K) and (r, O) of a linear layer, so that its output is x·Wᵀ + (x·firstᵀ)·second; r is 0 where none is."""
        if not hasattr(layer, "lora_A"):
            assert isinstance(layer, nn.Linear)
            return torch.zeros(0, layer.in_features), torch.zeros(0, layer.out_features)
        return self._read_term(layer)

    def _read_term(self, layer: Any) -> tuple[Tensor, Tensor]:
        return layer.lora_A["default"].weight, layer.scaling["default"] * layer.lora_B["default"].weight.T
