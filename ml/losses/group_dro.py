"""Group distributionally robust optimisation."""

import torch
from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.losses.group_risks import group_risks
from ml.models.outputs import Outputs


class GroupDroLoss(Loss):
    """Cross-entropy of the groups, weighted so that the worst come to count most.

    Formula: Σ_g q_g R_g, after q_g ← q_g e^(η R_g) / Σ_h q_h e^(η R_h) in training.
    Symbols: R_g mean cross-entropy of the group's rows in the step (0 where it has none), q its weight, evenly spread
    at the start, η step size.
    Shapes: logits (B, C), labels (B,), groups (B,) → (B,), which over B rows average to the formula.
    Choose it when some group does far worse than the average; use strong weight decay, or it overfits.
    Paper: Sagawa et al. 2020, arXiv:1911.08731.
    """

    wants = ("groups",)
    log_weights: Tensor

    def __init__(self, *, step_size: float, groups: int) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"group_dro needs 1 group or more; there are {groups}")
        self.step_size = step_size
        # Kept as logarithms: a weight that was small for long does not sink to 0, from where it could not rise.
        self.register_buffer("log_weights", torch.zeros(groups, dtype=torch.float64).log_softmax(0))

    @property
    def group_weights(self) -> Tensor:
        """q, (G,)."""
        return self.log_weights.exp()

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class. In training mode each call is a step: it moves the groups' weights."""
        found = group_risks(outputs, targets, len(self.log_weights))
        if self.training:
            moved = self.log_weights + self.step_size * found.risks.detach().double()
            self.log_weights.copy_(moved.log_softmax(0))
        weights = self.group_weights.to(found.losses.dtype)[found.groups]  # (B,)
        return weights * found.row_scale * found.losses
