"""The absolute error is torch's, and never broadcasts."""

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
    expected = functional.l1_loss(values, wanted)
    torch.testing.assert_close(step_of(loss_of("mae"), values[:, None], wanted).float(), expected)


def test_an_output_column_against_a_row_of_targets_does_not_broadcast() -> None:
    wanted = torch.randn(9)
    rows = rows_of(loss_of("mae"), wanted[:, None], wanted)
    assert rows.shape == (9,)
    assert not rows.any()


def test_takes_levels_as_numbers() -> None:
    levels, values = torch.tensor([0, 1, 2, 3]), torch.randn(4, 1)
    torch.testing.assert_close(rows_of(loss_of("mae"), values, levels), rows_of(loss_of("mae"), values, levels.float()))


def test_ignores_levels_of_minus_100_but_not_numbers() -> None:
    assert_ignores_minus_100(loss_of("mae"), 1)
    assert rows_of(loss_of("mae"), torch.zeros(1, 1), torch.tensor([-100.0])) > 0


def test_is_finite_at_extreme_outputs() -> None:
    assert_finite_at_extremes(loss_of("mae"), 1, [-200.0, 0.0, 200.0], torch.float32)
