"""Bootstrapped cross-entropy."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.distributions import as_distribution
from ml.models.outputs import Outputs
from ml.specs.losses.single_label import BOOTSTRAP_BETAS


class BootstrapLoss(Loss):
    """Cross-entropy against the label mixed with what the model itself says, so that a wrong label pulls less.

    Formula: −Σ_c t_c log p_c, t = β y + (1 − β) p (soft) or β y + (1 − β) one-hot(argmax p) (hard).
    Symbols: p = softmax(z), y the label as a one-hot row, β trust in it; t is a constant to the gradient.
    Shapes: logits (B, C), labels (B,) → (B,).
    Choose it, hard, when some labels are wrong and the model gets the others right soon. Soft has β times the gradient
    of cross-entropy, as t is a constant: p − t = β (p − y).
    Paper: Reed et al. 2015, arXiv:1412.6596.
    """

    def __init__(self, *, mode: str, beta: float | None) -> None:
        super().__init__()
        self.is_hard = mode == "hard"
        self.beta = BOOTSTRAP_BETAS[mode] if beta is None else beta

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        log_p = functional.log_softmax(outputs.logits, -1)  # (B, C)
        classes = log_p.shape[-1]
        p = log_p.detach().exp()
        own = functional.one_hot(p.argmax(-1), classes).to(p.dtype) if self.is_hard else p
        mixed = self.beta * as_distribution(targets, classes, log_p) + (1 - self.beta) * own
        return -(mixed * log_p).sum(-1) * (targets.labels != IGNORED)
