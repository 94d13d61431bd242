"""Large margin cosine loss."""

import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class CosFaceLoss(Loss):
    """Cross-entropy on cosines, that of the true label lessened by a margin.

    Formula: −log softmax(s (cos θ − m e_y))_y.
    Symbols: θ_j angle to the vector of label j, m margin, s scale, y the true class, e_y its unit vector.
    Shapes: logits (B, C), which are s cos θ, labels (B,) → (B,).
    Choose it when labels are many and alike; it is easier to train than arcface.
    Paper: Wang et al. 2018, arXiv:1801.09414.
    """

    def __init__(self, *, margin: float, scale: float) -> None:
        super().__init__()
        self.margin = margin
        self.scale = scale

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        logits, labels = outputs.logits, targets.labels.clamp_min(0)
        margins = torch.full_like(logits[:, :1], -self.scale * self.margin)  # (B, 1)
        lessened = logits.scatter_add(-1, labels[:, None], margins)  # (B, C)
        return functional.cross_entropy(lessened, targets.labels, ignore_index=IGNORED, reduction="none")
