"""R-Drop."""

from typing import ClassVar

from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.losses.states import check_reading, log_states, mean_divergence
from ml.models.outputs import Outputs


class RDropLoss(Loss):
    """Two forward passes under different dropout masks should give one answer.

    Formula: ½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)), averaged over the logits of a row where each is a sigmoid of its own.
    Symbols: p₁, p₂ what the two passes predict. The term's weight is the paper's α; the task's loss sees pass 1 alone.
    Shapes: logits (B, H) twice → (B,).
    Choose it when a small dataset overfits and a second forward pass is affordable. Without dropout it is 0.
    Paper: Liang et al. 2021, arXiv:2106.14448.
    """

    wants: ClassVar[tuple[str, ...]] = ("reading",)

    def __init__(self, *, reading: str) -> None:
        super().__init__()
        check_reading(reading, "r_drop")
        self.reading = reading

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        assert outputs.second is not None, "the spec needs a second forward pass"
        one = log_states(outputs.logits, self.reading)
        two = log_states(outputs.second.in_full_precision().logits, self.reading)
        losses = (mean_divergence(one, two) + mean_divergence(two, one)) / 2
        return losses * self.denominators(targets).to(losses.dtype)
