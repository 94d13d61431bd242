"""Huber's loss is torch's, and never broadcasts."""

import pytest
import torch
from torch.nn import functional

from tests.ml.losses.checks import (
    assert_finite_at_extremes,
    assert_ignores_minus_100,
    loss_of,
    rows_of,
    step_of,
)


def test_equals_torch() -> None:
    values, wanted = 3 * torch.randn(9), torch.randn(9)
    expected = functional.huber_loss(values, wanted)
    torch.testing.assert_close(step_of(loss_of("huber"), values[:, None], wanted).float(), expected)


def test_an_output_column_against_a_row_of_targets_does_not_broadcast() -> None:
    wanted = torch.randn(9)
    rows = rows_of(loss_of("huber"), wanted[:, None], wanted)
    assert rows.shape == (9,)
    assert not rows.any()


def test_takes_levels_as_numbers() -> None:
    levels, values = torch.tensor([0, 1, 2, 3]), torch.randn(4, 1)
    torch.testing.assert_close(
        rows_of(loss_of("huber"), values, levels), rows_of(loss_of("huber"), values, levels.float())
    )


def test_ignores_levels_of_minus_100_but_not_numbers() -> None:
    assert_ignores_minus_100(loss_of("huber"), 1)
    assert rows_of(loss_of("huber"), torch.zeros(1, 1), torch.tensor([-100.0])) > 0


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])
def test_equals_torch_at_any_width(width: float) -> None:
    values, wanted = 3 * torch.randn(50), torch.randn(50)
    expected = functional.huber_loss(values, wanted, delta=width)
    torch.testing.assert_close(step_of(loss_of("huber", delta=width), values[:, None], wanted).float(), expected)


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])
def test_is_its_width_times_smooth_l1(width: float) -> None:
    values, wanted = 3 * torch.randn(50, 1, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    huber, smooth = loss_of("huber", delta=width), loss_of("smooth_l1", beta=width)
    torch.testing.assert_close(rows_of(huber, values, wanted), width * rows_of(smooth, values, wanted))


def test_is_half_the_squared_error_when_no_error_passes_its_width() -> None:
    values, wanted = torch.randn(50, 1), torch.randn(50)
    torch.testing.assert_close(
        rows_of(loss_of("huber", delta=100.0), values, wanted), rows_of(loss_of("mse"), values, wanted) / 2
    )


def test_is_finite_at_extreme_outputs() -> None:
    assert_finite_at_extremes(loss_of("huber"), 1, [-200.0, 0.0, 200.0], torch.float32)
