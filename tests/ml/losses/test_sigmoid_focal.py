"""Sigmoid focal loss: limits, which side α counts, and logits where 1 − σ is 0."""

import math

import pytest
import torch
from torch.nn import functional

from tests.ml.losses.checks import (
    assert_finite_at_extremes,
    assert_ignores_minus_100,
    loss_of,
    multi_hot,
    rows_of,
    step_of,
)


def test_is_binary_cross_entropy_when_gamma_is_zero_and_alpha_null() -> None:
    logits, hot = torch.randn(9, 4), multi_hot(9, 4)
    expected = functional.binary_cross_entropy_with_logits(logits, hot)
    torch.testing.assert_close(step_of(loss_of("sigmoid_focal", gamma=0.0, alpha=None), logits, hot).float(), expected)


def test_is_half_of_binary_cross_entropy_when_alpha_is_one_half() -> None:
    logits, hot = torch.randn(9, 4), multi_hot(9, 4)
    expected = functional.binary_cross_entropy_with_logits(logits, hot) / 2
    torch.testing.assert_close(step_of(loss_of("sigmoid_focal", gamma=0.0, alpha=0.5), logits, hot).float(), expected)


def test_alpha_counts_the_positives() -> None:
    loss = loss_of("sigmoid_focal", gamma=0.0)
    positive, negative = rows_of(loss, torch.zeros(2, 1), torch.tensor([[1.0], [0.0]])).tolist()
    assert positive == pytest.approx(0.25 * math.log(2))
    assert negative == pytest.approx(0.75 * math.log(2))


def test_equals_a_slow_loop() -> None:
    logits, hot = torch.randn(6, 3, dtype=torch.float64), multi_hot(6, 3)
    rows = []
    for row, given in zip(logits.tolist(), hot.tolist(), strict=True):
        parts = []
        for z, y in zip(row, given, strict=True):
            p = 1 / (1 + math.exp(-z))
            p_true, alpha = (p, 0.25) if y else (1 - p, 0.75)
            parts.append(-alpha * (1 - p_true) ** 2 * math.log(p_true))
        rows.append(sum(parts) / 3)
    assert rows_of(loss_of("sigmoid_focal"), logits, hot).tolist() == pytest.approx(rows, rel=1e-10)


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("sigmoid_focal"), 1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_is_finite_at_extreme_logits(gamma: float) -> None:
    assert_finite_at_extremes(loss_of("sigmoid_focal", gamma=gamma), 2, [[0, 0], [0, 1], [1, 0], [1, 1]], torch.float32)
    assert_finite_at_extremes(loss_of("sigmoid_focal", gamma=gamma), 1, [0, 1], torch.int64)
