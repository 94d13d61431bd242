"""Symmetric cross-entropy against its two sums."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.sce import SceLoss
from ml.models.outputs import Outputs
from ml.specs.losses.single_label import SceSpec


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


def test_equals_alpha_times_cross_entropy_when_beta_is_zero() -> None:
    logits, labels = example()
    ours = losses_of(SceLoss(alpha=0.3, beta=0.0, log_zero=-4.0), logits, labels)
    expected = 0.3 * functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("log_zero", [-4.0, -6.0])
def test_equals_both_sums_over_the_classes_row_by_row(log_zero: float) -> None:
    logits, labels = example()
    ours = losses_of(SceLoss(alpha=0.1, beta=2.0, log_zero=log_zero), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        forward, reverse = -math.log(probability(row, y)), 0.0
        for c in range(3):
            log_of_label = 0.0 if c == y else log_zero  # log 1, and log 0
            reverse -= probability(row, c) * log_of_label
        assert got == pytest.approx(0.1 * forward + 2.0 * reverse, rel=1e-9)


def test_its_gradient_is_that_of_its_value() -> None:
    logits, labels = example(6)
    loss = SceLoss(alpha=0.1, beta=1.0, log_zero=-4.0)
    assert torch.autograd.gradcheck(lambda z: losses_of(loss, z, labels), logits.requires_grad_())


def test_two_weights_of_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="both 0"):
        SceSpec(type="sce", alpha=0, beta=0)


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(SceLoss(alpha=0.1, beta=1.0, log_zero=-4.0), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = SceLoss(alpha=0.1, beta=1.0, log_zero=-4.0)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
