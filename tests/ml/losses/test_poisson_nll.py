"""Poisson likelihood is torch's, of a rate given by its logarithm, and goes on straight where e^z would overflow."""

import numpy as np
import torch
from torch.nn import functional

from ml.tasks.readings import ValueReading
from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, rows_of, step_of


def test_equals_torch() -> None:
    log_rate, counts = torch.randn(9), torch.arange(9.0)
    expected = functional.poisson_nll_loss(log_rate, counts, log_input=True, full=False)
    torch.testing.assert_close(step_of(loss_of("poisson_nll"), log_rate[:, None], counts).float(), expected)


def test_an_output_column_against_a_row_of_targets_does_not_broadcast() -> None:
    assert rows_of(loss_of("poisson_nll"), torch.randn(9, 1), torch.arange(9.0)).shape == (9,)


def test_is_least_where_its_reading_is_the_count() -> None:
    log_rate = torch.linspace(-1, 5, 601)
    rows = rows_of(loss_of("poisson_nll"), log_rate[:, None], torch.full((601,), 7.0))
    best = log_rate[rows.argmin()].numpy().reshape(1, 1)
    np.testing.assert_allclose(ValueReading("log_rate").values(best), 7, rtol=0.01)


def test_is_continuous_with_its_gradient_where_it_turns_straight() -> None:
    around = torch.tensor([[30 - 1e-6], [30 + 1e-6]], dtype=torch.float64, requires_grad=True)
    rows = rows_of(loss_of("poisson_nll"), around, torch.zeros(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(rows.sum(), around)
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient[0], gradient[1], rtol=1e-5, atol=0)


def test_is_finite_at_extreme_outputs() -> None:
    assert_finite_at_extremes(loss_of("poisson_nll"), 1, [0.0, 1.0, 1e6], torch.float32)
