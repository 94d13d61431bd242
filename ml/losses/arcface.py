"""Additive angular margin."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class ArcFaceLoss(Loss):
    """Cross-entropy on cosines, the angle to the true label's vector widened by a margin.

    Formula: −log softmax(s c)_y, c_j = cos θ_j for j ≠ y, c_y = cos(θ_y + m); c_y = cos θ_y − m sin m for θ_y ≥ π − m,
    where cos(θ + m) would rise again.
    Symbols: θ_j angle to the vector of label j, m margin, s scale, y the true class.
    Shapes: logits (B, C), which are s cos θ, labels (B,) → (B,).
    Choose it when labels are many and alike, or when the embeddings are to be compared as well.
    Paper: Deng et al. 2019, arXiv:1801.07698.
    """

    def __init__(self, *, margin_degrees: float, scale: float) -> None:
        super().__init__()
        self.margin = math.radians(margin_degrees)
        self.scale = scale

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        logits, labels = outputs.logits, targets.labels.clamp_min(0)
        true = logits.gather(-1, labels[:, None]) / self.scale  # (B, 1)
        widened = logits.scatter(-1, labels[:, None], self.scale * self._widen(true))  # (B, C)
        return functional.cross_entropy(widened, targets.labels, ignore_index=IGNORED, reduction="none")

    def _widen(self, cosines: Tensor) -> Tensor:
        # sin² is kept off 0, where the root has no gradient; rounding can even put it below.
        sines = (1 - cosines**2).clamp_min(torch.finfo(cosines.dtype).eps).sqrt()
        widened = cosines * math.cos(self.margin) - sines * math.sin(self.margin)
        beyond = cosines - self.margin * math.sin(self.margin)
        return torch.where(cosines > -math.cos(self.margin), widened, beyond)
