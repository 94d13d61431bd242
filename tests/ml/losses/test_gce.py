"""Generalised cross-entropy against its formula and its two ends."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.gce import GceLoss
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


def test_becomes_cross_entropy_as_q_goes_to_zero() -> None:
    logits, labels = example()
    ours = losses_of(GceLoss(q=1e-12), logits, labels)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-9, atol=0)


def test_a_small_q_keeps_its_digits_in_float32() -> None:
    logits, labels = example()
    ours = losses_of(GceLoss(q=1e-6), logits.float(), labels)
    expected = functional.cross_entropy(logits, labels, reduction="none").float()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_is_one_minus_the_probability_when_q_is_one() -> None:
    logits, labels = example()
    p = logits.softmax(-1).gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(losses_of(GceLoss(q=1.0), logits, labels), 1 - p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_equals_its_formula_row_by_row(q: float) -> None:
    logits, labels = example()
    ours = losses_of(GceLoss(q=q), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        assert got == pytest.approx((1 - probability(row, y) ** q) / q, rel=1e-9, abs=1e-12)


def test_is_bounded_where_cross_entropy_is_not() -> None:
    wrong = torch.tensor([[-200.0, 200.0, 0.0]])
    assert losses_of(GceLoss(q=0.7), wrong, torch.tensor([0])).item() == pytest.approx(1 / 0.7)


def test_its_gradient_is_that_of_its_value() -> None:
    logits, labels = example(6)
    assert torch.autograd.gradcheck(lambda z: losses_of(GceLoss(q=0.7), z, labels), logits.requires_grad_())


@pytest.mark.parametrize("q", [1e-6, 0.7, 1.0])
def test_is_finite_with_a_finite_gradient_at_extreme_logits(q: float) -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(GceLoss(q=q), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = GceLoss(q=0.7)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
