"""Cross-entropy with soft labels."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.distributions import as_distribution
from ml.models.outputs import Outputs


class SoftCrossEntropyLoss(Loss):
    """Cross-entropy against a distribution over the labels.

    Formula: −Σ_c q_c log p_c, p = softmax(z / T).
    Symbols: z logits, q the given distribution, T temperature.
    Shapes: logits (B, C), labels (B, C) or (B,) → (B,).
    Choose it when annotators disagree and their votes are known.
    Paper: Peterson et al. 2019, arXiv:1908.07086.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        log_p = functional.log_softmax(outputs.logits / self.temperature, -1)  # (B, C)
        return -(as_distribution(targets, log_p.shape[-1], log_p) * log_p).sum(-1)
