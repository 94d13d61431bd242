"""Distribution-balanced loss."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import Loss, Targets
from ml.losses.multi_hot import as_multi_hot, mean_over_labels
from ml.models.outputs import Outputs


class DbLoss(Loss):
    """Focal loss for long tails: rows that frequent labels share count less, and negatives are tolerated sooner.

    Formula: r (1 − p)^γ (−log p) with p = σ(z − ν) for a positive, p = σ(−λ(z − ν)) and 1/λ of it for a negative,
        averaged over the labels of a row. r = α + σ(β(s − μ)), s = (1/n_i) / Σ_{j positive} 1/n_j,
        ν = κ log(N/n_i − 1).
    Symbols: n_i training rows of label i, N training rows, γ focusing, α β μ the map of weights, λ how much sooner a
        negative is let go, κ how far frequency shifts a logit (in training only).
    Shapes: logits (B, L), labels (B, L) → (B,).
    Choose it when labels are many, some are rare, and rare ones come along with frequent ones.
    Paper: Wu et al. 2020, arXiv:2007.09654; for texts, with these defaults: Huang et al. 2021, arXiv:2109.04712.
    """

    wants: ClassVar[tuple[str, ...]] = ("label_counts", "train_rows")
    rarity: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        gamma: float,
        map_alpha: float,
        map_beta: float,
        map_gamma: float,
        neg_scale: float,
        init_bias: float,
        label_counts: Tensor,
        train_rows: int,
    ) -> None:
        super().__init__()
        if train_rows < label_counts.max():
            raise ValueError(f"{train_rows} training rows, but {int(label_counts.max())} rows of one label")
        self.gamma = gamma
        self.map_alpha, self.map_beta, self.map_gamma = map_alpha, map_beta, map_gamma
        self.neg_scale = neg_scale
        # A label without rows counts as one with one row, a label of every row as one that a single row lacks.
        held, lacking = label_counts.clamp_min(1), (train_rows - label_counts).clamp_min(1)
        self.register_buffer("rarity", 1 / held)
        self.register_buffer("shift", init_bias * torch.log(lacking / held))

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        logits = outputs.logits
        hot = as_multi_hot(targets, logits)
        shifted = logits - self.shift.to(logits.dtype)
        towards = torch.where(hot > 0.5, shifted, -self.neg_scale * shifted)  # the logit of the true side
        log_p, log_not_p = functional.logsigmoid(towards), functional.logsigmoid(-towards)
        losses = -torch.exp(self.gamma * log_not_p) * log_p * self._weights(hot)
        return mean_over_labels(torch.where(hot > 0.5, losses, losses / self.neg_scale), targets)

    def _weights(self, hot: Tensor) -> Tensor:
        rarity = self.rarity.to(hot.dtype)
        # A row without positives: the share is infinite, and the weight is at its highest.
        share = rarity / (hot * rarity).sum(-1, keepdim=True)  # (B, L)
        return self.map_alpha + torch.sigmoid(self.map_beta * (share - self.map_gamma))
