"""Consistent rank logits."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.levels import levels_passed
from ml.models.outputs import Outputs


class CoralLoss(Loss):
    """K − 1 yes-or-no questions, "is it above level k?", added up over the questions.

    Formula: Σ_k BCE(z_k, [y > k]), k = 0 … K − 2.
    Symbols: z_k = w·x + b_k the logit of P(y > k), one score for all k; y the level.
    Shapes: logits (B, K − 1), labels (B,) → (B,).
    Choose it when levels are many or rows few: all questions share one direction.
    Paper: Cao, Mirjalili and Raschka 2020, arXiv:1901.07884.
    """

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        passed = levels_passed(targets, outputs.logits)  # (B, K − 1)
        losses = functional.binary_cross_entropy_with_logits(outputs.logits, passed, reduction="none")
        return losses.sum(-1) * (targets.labels != IGNORED)
