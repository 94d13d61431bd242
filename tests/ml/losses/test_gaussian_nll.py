"""Gaussian likelihood is torch's, of a variance given by its logarithm."""

import torch
from torch.nn import functional

from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, rows_of, step_of


def test_equals_torch() -> None:
    outputs, wanted = torch.randn(9, 2), torch.randn(9)
    expected = functional.gaussian_nll_loss(outputs[:, 0], wanted, outputs[:, 1].exp())
    torch.testing.assert_close(step_of(loss_of("gaussian_nll"), outputs, wanted).float(), expected)


def test_is_half_the_squared_error_at_variance_one() -> None:
    mean, wanted = torch.randn(9, 1), torch.randn(9)
    rows = rows_of(loss_of("gaussian_nll"), functional.pad(mean, (0, 1)), wanted)
    torch.testing.assert_close(rows, rows_of(loss_of("mse"), mean, wanted) / 2)


def test_is_least_where_the_variance_is_the_squared_error() -> None:
    log_variance = torch.tensor(2 * 3.0).log() + torch.linspace(-1, 1, 21)
    outputs = torch.stack([torch.zeros(21), log_variance], -1)
    rows = rows_of(loss_of("gaussian_nll"), outputs, torch.full((21,), 6.0**0.5))
    assert rows.argmin() == 10


def test_is_finite_at_extreme_outputs() -> None:
    assert_finite_at_extremes(loss_of("gaussian_nll"), 2, [-200.0, 0.0, 200.0], torch.float32)
