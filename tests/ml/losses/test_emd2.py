"""Squared earth mover's distance: a loop over cumulative sums, its bounds, and what a miss costs by its distance."""

import math

import pytest
import torch

from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, rows_of


def test_equals_a_slow_loop() -> None:
    logits, levels = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 4, (9,))
    expected = []
    for row, y in zip(logits.tolist(), levels.tolist(), strict=True):
        weights = [math.exp(z) for z in row]
        p = [weight / sum(weights) for weight in weights]
        expected.append(sum((sum(p[: k + 1]) - (1 if y <= k else 0)) ** 2 for k in range(4)))
    assert rows_of(loss_of("emd2"), logits, levels).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_sure_miss_costs_its_distance() -> None:
    sure = torch.full((4, 4), -200.0).fill_diagonal_(200)
    assert rows_of(loss_of("emd2"), sure, torch.zeros(4, dtype=torch.int64)).tolist() == [0, 1, 2, 3]


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("emd2"), 4)


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("emd2"), 4, [0, 1, 2, 3], torch.int64)
