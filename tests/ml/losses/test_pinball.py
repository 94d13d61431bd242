"""Pinball loss: a slow loop, the median as half the absolute error, and quantiles as its minimum."""

import pytest
import torch

from ml.specs.losses.regression import PinballSpec
from ml.tasks.readings import ValueReading
from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, rows_of


def test_equals_a_slow_loop() -> None:
    outputs, wanted = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    expected = [
        sum(max(t * (y - z), (t - 1) * (y - z)) for t, z in zip((0.1, 0.5, 0.9), row, strict=True)) / 3
        for row, y in zip(outputs.tolist(), wanted.tolist(), strict=True)
    ]
    assert rows_of(loss_of("pinball"), outputs, wanted).tolist() == pytest.approx(expected, rel=1e-10)


def test_is_half_the_absolute_error_at_the_median() -> None:
    outputs, wanted = torch.randn(9, 1), torch.randn(9)
    expected = rows_of(loss_of("mae"), outputs, wanted) / 2
    torch.testing.assert_close(rows_of(loss_of("pinball", quantiles=[0.5]), outputs, wanted), expected)


def test_is_least_at_the_quantile() -> None:
    wanted = torch.arange(101.0)
    loss = loss_of("pinball", quantiles=[0.2])
    sums = [rows_of(loss, torch.full((101, 1), float(guess)), wanted).sum() for guess in range(101)]
    assert min(range(101), key=lambda guess: sums[guess]) == 20


def test_its_reading_has_an_output_for_each_quantile() -> None:
    spec = PinballSpec(type="pinball")
    assert ValueReading(spec.readings["regression"], tuple(spec.quantiles)).width == 3


@pytest.mark.parametrize("quantiles", [[0.5, 0.1], [0.5, 0.5], [], [0.0, 0.5], [0.5, 1.0]])
def test_refuses_quantiles_out_of_order_repeated_or_out_of_range(quantiles: list[float]) -> None:
    with pytest.raises(ValueError, match="quantiles"):
        PinballSpec(type="pinball", quantiles=quantiles)


def test_is_finite_at_extreme_outputs() -> None:
    assert_finite_at_extremes(loss_of("pinball"), 3, [-200.0, 0.0, 200.0], torch.float32)
