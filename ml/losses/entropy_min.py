"""Entropy minimisation."""

from typing import ClassVar

from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.losses.states import check_reading, log_states
from ml.models.outputs import Outputs


class EntropyMinLoss(Loss):
    """A prediction should be sure, which draws the decision boundary away from the rows.

    Formula: −Σ_c p_c log p_c, averaged over the logits of a row where each is a sigmoid of its own.
    Symbols: p what the model predicts.
    Shapes: logits (B, H) → (B,).
    Choose it, with a small weight, when classes are well separated. It costs calibration: confidence rises.
    Paper: Grandvalet and Bengio 2004.
    """

    wants: ClassVar[tuple[str, ...]] = ("reading",)

    def __init__(self, *, reading: str) -> None:
        super().__init__()
        check_reading(reading, "entropy_min")
        self.reading = reading

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        log_p = log_states(outputs.logits, self.reading)  # (B, V, S)
        losses = -(log_p.exp() * log_p).sum(-1).mean(-1)
        return losses * self.denominators(targets).to(losses.dtype)
