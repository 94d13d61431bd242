"""Focal loss against its formula, its limits, and logits as large as they come."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Targets
from ml.losses.focal import FocalLoss
from ml.models.outputs import Outputs
from tests.ml.losses.checks import rows_of, step_of

ALPHA = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and targets (N,)."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def test_equals_cross_entropy_when_gamma_is_zero() -> None:
    logits, targets = example()
    loss = FocalLoss(gamma=0.0, alpha=None)
    mean = step_of(loss, logits, targets)
    torch.testing.assert_close(mean, functional.cross_entropy(logits, targets), rtol=1e-12, atol=0)


def test_is_half_of_cross_entropy_when_every_alpha_is_half_and_gamma_zero() -> None:
    logits, targets = example()
    loss = FocalLoss(gamma=0.0, alpha=torch.full((3,), 0.5, dtype=torch.float64))
    mean = step_of(loss, logits, targets)
    torch.testing.assert_close(mean, functional.cross_entropy(logits, targets) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_equals_its_formula_row_by_row(gamma: float) -> None:
    logits, targets = example()
    ours = rows_of(FocalLoss(gamma=gamma, alpha=ALPHA), logits, targets)
    for row, y, got in zip(logits.tolist(), targets.tolist(), ours.tolist(), strict=True):
        p = math.exp(row[y]) / sum(map(math.exp, row))
        assert got == pytest.approx(-ALPHA[y].item() * (1 - p) ** gamma * math.log(p), rel=1e-9)


def test_gradient_equals_the_one_of_its_formula() -> None:
    logits, targets = example(6)
    loss = FocalLoss(gamma=2.0, alpha=ALPHA)
    ours = logits.clone().requires_grad_()
    rows_of(loss, ours, targets).sum().backward()
    naive = logits.clone().requires_grad_()
    p = naive.softmax(-1)[torch.arange(6), targets]
    (-ALPHA[targets] * (1 - p) ** 2 * p.log()).sum().backward()
    torch.testing.assert_close(ours.grad, naive.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("under_autocast", [False, True])
def test_is_finite_with_a_finite_gradient_at_extreme_logits(gamma: float, under_autocast: bool) -> None:
    dtype = torch.bfloat16 if under_autocast else torch.float32
    sure, wrong = [200.0, -200.0, -200.0], [-200.0, 200.0, 200.0]
    logits = torch.tensor([sure, wrong, [200.0] * 3], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        outputs = Outputs(logits, logits).in_full_precision()
        losses = FocalLoss(gamma=gamma, alpha=ALPHA).numerators(outputs, Targets(torch.tensor([0, 0, 0])))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert losses[1].item() == pytest.approx(0.3 * (400 + math.log(2)), rel=1e-5)  # sure and wrong: nearly −α log p


def test_two_labels_at_extreme_logits_keep_their_gradient_finite() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    losses = rows_of(FocalLoss(gamma=0.5, alpha=None), logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 400.0]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, targets = example(5)
    targets[[0, 3]] = IGNORED
    loss = FocalLoss(gamma=2.0, alpha=ALPHA)
    assert loss.denominators(Targets(targets)).tolist() == [0, 1, 1, 0, 1]
    assert (rows_of(loss, logits, targets) == 0).tolist() == [True, False, False, True, False]
