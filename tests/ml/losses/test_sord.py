"""SORD: a loop over soft labels by distance, and cross-entropy as they sharpen."""

import math

import pytest
import torch
from torch.nn import functional

from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, rows_of, step_of


@pytest.mark.parametrize(("metric", "power"), [("absolute", 1), ("squared", 2)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_equals_a_slow_loop(metric: str, power: int, scale: float) -> None:
    logits, levels = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 4, (9,))
    expected = []
    for row, y in zip(logits.tolist(), levels.tolist(), strict=True):
        soft = [math.exp(-scale * abs(k - y) ** power) for k in range(4)]
        normalizer = math.log(sum(math.exp(z) for z in row))
        expected.append(sum(q / sum(soft) * (normalizer - z) for q, z in zip(soft, row, strict=True)))
    rows = rows_of(loss_of("sord", metric=metric, scale=scale), logits, levels)
    assert rows.tolist() == pytest.approx(expected, rel=1e-10)


def test_is_cross_entropy_when_soft_labels_fall_off_at_once() -> None:
    logits, levels = torch.randn(9, 4), torch.randint(0, 4, (9,))
    expected = functional.cross_entropy(logits, levels)
    torch.testing.assert_close(step_of(loss_of("sord", scale=100.0), logits, levels).float(), expected)


def test_a_near_miss_costs_less_than_a_far_one() -> None:
    near, far = rows_of(
        loss_of("sord"), torch.tensor([[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]]), torch.tensor([0, 0])
    )
    assert near < far


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("sord"), 4)


@pytest.mark.parametrize("metric", ["absolute", "squared"])
def test_is_finite_at_extreme_logits(metric: str) -> None:
    assert_finite_at_extremes(loss_of("sord", metric=metric), 4, [0, 1, 2, 3], torch.int64)
