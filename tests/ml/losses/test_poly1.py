"""Poly-1 against its closed form."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.poly1 import Poly1Loss
from ml.models.outputs import Outputs


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


def test_equals_cross_entropy_when_epsilon_is_zero() -> None:
    logits, labels = example()
    ours = losses_of(Poly1Loss(epsilon=0.0), logits, labels)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("epsilon", [-1.0, 1.0, 10.0])
def test_equals_its_closed_form_row_by_row(epsilon: float) -> None:
    logits, labels = example()
    ours = losses_of(Poly1Loss(epsilon=epsilon), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        p = probability(row, y)
        assert got == pytest.approx(-math.log(p) + epsilon * (1 - p), rel=1e-9, abs=1e-12)


def test_its_gradient_is_that_of_its_value() -> None:
    logits, labels = example(6)
    assert torch.autograd.gradcheck(lambda z: losses_of(Poly1Loss(epsilon=2.0), z, labels), logits.requires_grad_())


@pytest.mark.parametrize("epsilon", [-1.0, 10.0])
def test_is_finite_with_a_finite_gradient_at_extreme_logits(epsilon: float) -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(Poly1Loss(epsilon=epsilon), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = Poly1Loss(epsilon=1.0)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
