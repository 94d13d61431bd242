"""Variance risk extrapolation."""

from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.losses.group_risks import group_risks
from ml.models.outputs import Outputs


class VRexLoss(Loss):
    """Mean cross-entropy of the groups, and how far they differ: a model that is as good in each holds in new ones.

    Formula: mean_g R_g + β mean_g (R_g − mean_h R_h)², over the groups in the step.
    Symbols: R_g mean cross-entropy of the group's rows in the step, β weight of their variance.
    Shapes: logits (B, C), labels (B,), groups (B,) → (B,), which over B rows average to the formula.
    Choose it when groups are sources or times, and texts to come will be of others.
    Paper: Krueger et al. 2021, arXiv:2003.00688.
    """

    wants = ("groups",)

    def __init__(self, *, beta: float, groups: int) -> None:
        super().__init__()
        self.beta = beta
        self.groups = groups

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        found = group_risks(outputs, targets, self.groups)
        present = found.is_present.sum().clamp_min(1)  # no group is, where every label is ignored
        deviations = (found.risks - found.risks.sum() / present) ** 2  # (G,)
        # Each group's squared deviation is shared out evenly among its rows.
        return found.row_scale * (found.losses + self.beta * deviations[found.groups]) / present
