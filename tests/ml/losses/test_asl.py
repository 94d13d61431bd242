"""Asymmetric loss: limits, the margin below which a negative counts nothing, and a loop over the paper's formula."""

import math

import pytest
import torch
from torch.nn import functional

from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, multi_hot, rows_of, step_of


def _slow(z: float, y: float, gamma_pos: float, gamma_neg: float, clip: float) -> float:
    p = 1 / (1 + math.exp(-z))
    if y:
        return -((1 - p) ** gamma_pos) * math.log(p)
    shifted = max(p - clip, 0)
    return -(shifted**gamma_neg) * math.log(1 - shifted)


@pytest.mark.parametrize(("gamma_pos", "gamma_neg", "clip"), [(0, 4, 0.05), (1, 4, 0.05), (0, 2, 0), (1.5, 0.5, 0.3)])
def test_equals_a_slow_loop(gamma_pos: float, gamma_neg: float, clip: float) -> None:
    logits, hot = 3 * torch.randn(12, 4, dtype=torch.float64), multi_hot(12, 4)
    expected = [
        sum(_slow(z, y, gamma_pos, gamma_neg, clip) for z, y in zip(row, given, strict=True)) / 4
        for row, given in zip(logits.tolist(), hot.tolist(), strict=True)
    ]
    loss = loss_of("asl", gamma_pos=float(gamma_pos), gamma_neg=float(gamma_neg), clip=float(clip))
    assert rows_of(loss, logits, hot).tolist() == pytest.approx(expected, rel=1e-9)


def test_is_binary_cross_entropy_without_focusing_and_margin() -> None:
    logits, hot = torch.randn(9, 4), multi_hot(9, 4)
    loss = loss_of("asl", gamma_pos=0.0, gamma_neg=0.0, clip=0.0)
    expected = functional.binary_cross_entropy_with_logits(logits, hot)
    torch.testing.assert_close(step_of(loss, logits, hot).float(), expected)


def test_is_sigmoid_focal_when_both_sides_focus_alike() -> None:
    logits, hot = torch.randn(9, 4), multi_hot(9, 4)
    asl = loss_of("asl", gamma_pos=2.0, gamma_neg=2.0, clip=0.0)
    focal = loss_of("sigmoid_focal", gamma=2.0, alpha=None)
    torch.testing.assert_close(rows_of(asl, logits, hot), rows_of(focal, logits, hot))


def test_a_negative_below_the_margin_counts_nothing() -> None:
    logits = torch.tensor([[-3.0]], requires_grad=True)  # σ(−3) = 0.047
    loss = rows_of(loss_of("asl"), logits, torch.zeros(1, 1))
    assert loss == 0
    assert torch.autograd.grad(loss.sum(), logits)[0] == 0


def test_the_focusing_factor_is_differentiated_too() -> None:
    logits = torch.tensor([[0.3, -0.4]], dtype=torch.float64, requires_grad=True)
    loss, hot = loss_of("asl", gamma_pos=1.0), torch.tensor([[1.0, 0.0]])
    assert torch.autograd.gradcheck(lambda z: rows_of(loss, z, hot), logits)


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.5])
def test_is_finite_at_extreme_logits(gamma_neg: float, clip: float) -> None:
    loss = loss_of("asl", gamma_pos=0.5, gamma_neg=gamma_neg, clip=clip)
    assert_finite_at_extremes(loss, 2, [[0, 0], [0, 1], [1, 0], [1, 1]], torch.float32)


def test_is_finite_where_a_negative_stands_at_the_margin() -> None:
    logits = torch.logit(torch.tensor([[0.05]])).requires_grad_()
    loss = rows_of(loss_of("asl", gamma_neg=0.5), logits, torch.zeros(1, 1))
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
