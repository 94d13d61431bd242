"""What the tests of losses share: a loss from its spec's defaults, its value over a step, and logits at ±200."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ml.losses.base import Loss, LossContext, Targets
from ml.losses.registry import build_loss
from ml.models.outputs import Outputs
from ml.specs.losses.table import LOSS_SPECS

LEVELS = LossContext(
    labels=("poor", "fair", "good", "great"), train_counts={"poor": 1, "fair": 2, "good": 3, "great": 4}
)


def loss_of(name: str, context: LossContext | None = None, **fields: Any) -> Loss:
    """The loss that a spec of this type, with these fields, asks for."""
    return build_loss(LOSS_SPECS[name](type=name, **fields), context or LossContext())


def rows_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The numerator of each row."""
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def step_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a step of these rows."""
    return rows_of(loss, logits, labels).sum() / loss.denominators(Targets(labels)).sum()


def assert_finite_at_extremes(loss: Loss, width: int, labels: Sequence[Any], dtype: torch.dtype) -> None:
    """Each label against every sign of logits of 200: the value and the gradient are finite in float32."""
    signs = list(product((-200.0, 0.0, 200.0), repeat=width))
    logits = torch.tensor([row for row in signs for _ in labels], dtype=torch.float32, requires_grad=True)
    values = rows_of(loss, logits, torch.tensor(list(labels) * len(signs), dtype=dtype))
    assert values.shape == (len(signs) * len(labels),)
    assert values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert gradient.isfinite().all()


def assert_ignores_minus_100(loss: Loss, width: int) -> None:
    """A row labelled −100 adds nothing: no numerator, no denominator, no gradient."""
    logits = torch.randn(2, width, requires_grad=True)
    labels = torch.tensor([1, -100])
    rows = rows_of(loss, logits, labels)
    assert rows[1] == 0
    assert loss.denominators(Targets(labels))[1] == 0
    assert not torch.autograd.grad(rows.sum(), logits)[0][1].any()


def multi_hot(rows: int, labels: int) -> Tensor:
    """About a third of the labels of each row, none in the first and all in the second."""
    hot = (torch.rand(rows, labels) < 1 / 3).float()
    hot[0], hot[1] = 0, 1
    return hot
