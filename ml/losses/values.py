"""One number a row, beside its target, in the same shape: (B, 1) against (B,) would broadcast to B × B in silence."""

import torch
from torch import Tensor

from ml.losses.base import IGNORED, Targets
from ml.models.outputs import Outputs


def one_value(outputs: Outputs, targets: Targets) -> tuple[Tensor, Tensor]:
    """The first output and the target, each (B,). Ordinal levels count as numbers.

    An ignored level is as the output says: no error, and no gradient.
    """
    values = outputs.logits[:, 0]
    wanted = targets.labels.to(values.dtype)
    if targets.labels.is_floating_point():
        return values, wanted
    return values, torch.where(targets.labels == IGNORED, values, wanted)
