"""One optimizer step: the same loss and gradient however its rows are cut into micro-batches."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml.data.batches import Rows, cut_step
from ml.losses.base import Loss
from ml.training.errors import NothingToLearnError
from ml.training.machine import Machine


class Examples(Protocol):
    """Rows a network can read: tokens, or features that were encoded before."""

    lengths: NDArray[np.int64]

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The network's inputs for these rows, padded to the longest of them."""


@dataclass(frozen=True)
class StepReport:
    """What one step did. Gradients are left on the network, not yet clipped."""

    loss: float
    rows: int
    real_tokens: int
    padded_tokens: int


def backward_step(
    network: nn.Module,
    loss: Loss,
    examples: Examples,
    targets: Tensor,
    rows: Rows,
    machine: Machine,
    micro_batch_rows: int | None,
) -> StepReport:
    """Accumulate the gradient of Σ numerators / Σ denominators over all `rows`.

    targets: (N,) of the whole table. The divisor is that of the whole step, known before the first forward pass, so
    each micro-batch adds exactly its share. Raises NothingToLearnError when no row of the step has a target.
    """
    step_targets = targets[torch.from_numpy(rows)].to(machine.device)
    denominator = float(loss.denominators(step_targets).sum())
    if denominator <= 0:
        raise NothingToLearnError(
            f"none of the {len(rows)} rows of this step counts towards the loss: each label is ignored or has weight 0 "
            f"(rows {', '.join(str(row + 1) for row in rows[:5])}, …)"
        )
    total, padded = 0.0, 0
    for micro in cut_step(rows, examples.lengths, max_tokens=machine.micro_batch_tokens, max_rows=micro_batch_rows):
        inputs = {name: tensor.to(machine.device) for name, tensor in examples.inputs_of(micro).items()}
        with machine.autocast():
            outputs = network(**inputs)
        micro_targets = targets[torch.from_numpy(micro)].to(machine.device)
        share = loss.numerators(outputs.in_full_precision(), micro_targets).sum() / denominator
        share.backward()  # type: ignore[no-untyped-call]
        total += share.item()
        padded += len(micro) * int(examples.lengths[micro].max())
    return StepReport(total, len(rows), int(examples.lengths[rows].sum()), padded)
