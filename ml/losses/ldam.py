"""Label-distribution-aware margins, with weights that may set in later."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs

# β of the effective numbers in Cao et al.'s experiments.
DEFERRED_BETA = 0.9999


class LdamLoss(Loss):
    """Cross-entropy in which the true label must win by a margin, and a wider one the rarer it is.

    Formula: −w_y log softmax(s (cos θ − Δ_y e_y))_y, divided by w_y over the step,
    Δ_j = m n_j^(−1/4) / max_k n_k^(−1/4).
    Symbols: cos θ of the angle to each label's vector, s scale, m the widest margin, n_j training rows of label j, y
    the true class, e_y its unit vector; w = 1 until the deferred epoch, then (1 − β) / (1 − β^n), rescaled to mean 1.
    Shapes: logits (B, C), which are s cos θ, labels (B,) → (B,).
    Choose it when labels are very unevenly frequent; deferred weights come on for the last fifth of the epochs.
    Paper: Cao et al. 2019, arXiv:1906.07413.
    """

    wants = ("label_counts",)
    margins: Tensor
    late_weights: Tensor

    def __init__(self, *, max_margin: float, scale: float, deferred_epoch: int | None, label_counts: Tensor) -> None:
        super().__init__()
        if (label_counts <= 0).any():
            empty = torch.nonzero(label_counts <= 0)[:, 0].tolist()
            raise ValueError(f"ldam needs training rows of every label; those of number {empty} have 0")
        self.scale = scale
        self.deferred_epoch = deferred_epoch
        counts = label_counts.double()
        self.register_buffer("margins", max_margin * (counts / counts.min()) ** -0.25)
        weights = (1 - DEFERRED_BETA) / (1 - DEFERRED_BETA**counts)
        self.register_buffer("late_weights", weights / weights.mean())
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Weigh rows from the deferred epoch on."""
        self.is_weighted = self.deferred_epoch is not None and epoch >= self.deferred_epoch

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        logits, labels = outputs.logits, targets.labels.clamp_min(0)
        margins = self.scale * self.margins.to(logits.dtype)[labels]  # (B,)
        narrowed = logits.scatter_add(-1, labels[:, None], -margins[:, None])  # (B, C)
        weights = self.late_weights.to(logits.dtype) if self.is_weighted else None
        return functional.cross_entropy(narrowed, targets.labels, weights, ignore_index=IGNORED, reduction="none")

    def denominators(self, targets: Targets) -> Tensor:
        """The weight of the row's label, once rows are weighted; before, 1."""
        if not self.is_weighted:
            return super().denominators(targets)
        return self.late_weights[targets.labels.clamp_min(0)] * (targets.labels != IGNORED)
