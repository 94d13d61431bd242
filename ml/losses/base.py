"""What a loss is: a numerator and a denominator for each row. The loop divides; a loss never averages.

`loss = Σ numerators / Σ denominators`, both sums over the whole optimizer step, however it is cut. Denominators
depend on the targets alone, so that the loop knows the divisor before its first backward pass. A loss never runs the
model: what it wants besides logits stands in its spec's `needs`.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ml.models.outputs import Outputs

IGNORED = -100  # class id of a row without a target


@dataclass(frozen=True)
class Targets:
    """What is known of rows.

    labels: (N,) int64 class ids or levels, (N, C) float32 soft or multi-hot, (N,) float32 numbers.
    groups: (N,) int64 ids. teacher: (N, H) float32 logits of another model. other, share: of rows that are mixed, what
    each is mixed with, and how much (N,) float64 it keeps of itself.
    """

    labels: Tensor
    groups: Tensor | None = None
    teacher: Tensor | None = None
    other: "Targets | None" = None
    share: Tensor | None = None

    def take(self, rows: Tensor) -> "Targets":
        """Those of some rows, given by number (B,)."""
        return self.each(lambda tensor: tensor[rows])

    def mix(self, of: Callable[["Targets"], Tensor]) -> Tensor:
        """What rows come to (N,): by their own targets, and where they are mixed by both, each with its share."""
        own = of(self)
        if self.other is None or self.share is None:
            return own
        share = self.share.to(own.dtype)
        return share * own + (1 - share) * of(self.other)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        """Those that `change` makes of them, say on another device."""
        groups = None if self.groups is None else change(self.groups)
        teacher = None if self.teacher is None else change(self.teacher)
        other = None if self.other is None else self.other.each(change)
        share = None if self.share is None else change(self.share)
        return Targets(change(self.labels), groups, teacher, other, share)


@dataclass(frozen=True)
class LossContext:
    """What is known of the training rows before a loss is built."""

    labels: Sequence[str] = ()
    train_counts: Mapping[str, int] = field(default_factory=dict)
    groups: int = 0  # how many there are
    train_rows: int = 0  # a row of several labels counts once, so the labels' counts do not tell it
    reading: str = "softmax"  # how the model's outputs are read

    @property
    def label_counts(self) -> Tensor:
        """Training rows of each label (C,) float64, in the order of the labels."""
        return torch.tensor([self.train_counts[label] for label in self.labels], dtype=torch.float64)

    @property
    def classes(self) -> int:
        """How many labels, or levels, there are."""
        return len(self.labels)


class Loss(nn.Module):
    """One loss. Parameters arrive as keyword arguments without defaults: those live in the spec.

    `wants` names what it takes from the LossContext besides its spec's fields.
    """

    wants: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """What each row adds to the loss. outputs.logits: (B, H) float32 → (B,)."""

    def denominators(self, targets: Targets) -> Tensor:
        """What each row adds to the divisor (B,): 1, and 0 where the label is ignored."""
        labels = targets.labels
        if labels.ndim > 1 or labels.is_floating_point():
            return torch.ones(len(labels), dtype=torch.float64, device=labels.device)
        return (labels != IGNORED).double()

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0."""
