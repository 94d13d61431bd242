"""Supervised contrastive loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class SupConLoss(Loss):
    """Rows of one label should lie closer together than to any other row of the step.

    Formula: −1/|P(i)| Σ_{p∈P(i)} log(exp(v_i·v_p / τ) / Σ_{a≠i} exp(v_i·v_a / τ)), averaged over the anchors.
    Symbols: v embeddings of norm 1, P(i) the other rows of row i's label, τ temperature. A row without any such is no
        anchor, though others are still pushed away from it; an ignored row takes no part.
    Shapes: embeddings (B, D), labels (B,) → (B,).
    Choose it beside cross-entropy when each label has few rows, with several rows of a label in every step.
    Paper: Khosla et al. 2020, arXiv:2004.11362.
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class. The rows must be the whole step: others in it are what a row is compared with."""
        vectors = functional.normalize(outputs.embeddings, dim=-1)
        likeness = vectors @ vectors.T / self.temperature  # (B, B)
        positive = _positives(targets.labels)  # (B, B)
        itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        is_left_out = itself | (targets.labels == IGNORED)
        # The lowest number, not −inf: a row that is left with none to compare would be NaN, and so would its gradient.
        log_p = functional.log_softmax(likeness.masked_fill(is_left_out, torch.finfo(likeness.dtype).min), -1)
        return -torch.where(positive, log_p, 0.0).sum(-1) / positive.sum(-1).clamp_min(1)

    def denominators(self, targets: Targets) -> Tensor:
        """1 for a row that shares its label with another row of the step. Over them: the share of anchors."""
        return _positives(targets.labels).any(-1).double()


def _positives(labels: Tensor) -> Tensor:
    """(B,) → (B, B): whether two different rows have one label."""
    if labels.ndim != 1:
        raise ValueError("supcon needs one label a row, not a distribution over them")
    same = (labels[:, None] == labels) & (labels != IGNORED)
    return same.fill_diagonal_(False)
