"""CORAL: the sum of K − 1 binary cross-entropies, and levels read from cumulative probabilities."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ml.specs.losses.table import LOSS_SPECS
from ml.tasks.readings import label_reading
from tests.ml.losses.checks import (
    LEVELS,
    assert_finite_at_extremes,
    assert_ignores_minus_100,
    loss_of,
    rows_of,
    step_of,
)

# The example of coral_pytorch's coral_loss, and what it says there.
LOGITS = torch.tensor([[2.1, 1.8, -2.1, -1.8], [1.9, -1.0, -1.5, -1.3], [1.9, 1.8, 1.7, 1.6]])


def test_equals_the_value_that_coral_pytorch_documents() -> None:
    assert step_of(loss_of("coral"), LOGITS, torch.tensor([2, 1, 4])).item() == pytest.approx(0.6920, abs=5e-5)


def test_equals_a_slow_loop() -> None:
    logits, levels = torch.randn(9, 3, dtype=torch.float64), torch.randint(0, 4, (9,))
    expected = [
        sum(math.log1p(math.exp(-z if y > k else z)) for k, z in enumerate(row))
        for row, y in zip(logits.tolist(), levels.tolist(), strict=True)
    ]
    assert rows_of(loss_of("coral"), logits, levels).tolist() == pytest.approx(expected, rel=1e-10)


def test_is_binary_cross_entropy_of_two_levels() -> None:
    logits, levels = torch.randn(9, 1), torch.randint(0, 2, (9,))
    expected = functional.binary_cross_entropy_with_logits(logits[:, 0], levels.float())
    torch.testing.assert_close(step_of(loss_of("coral"), logits, levels).float(), expected)


def test_its_reading_gives_probabilities_even_where_logits_are_out_of_order() -> None:
    scores = label_reading(LOSS_SPECS["coral"].readings["ordinal"], LEVELS.labels).scores(
        3 * torch.randn(50, 3).numpy()
    )
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-12)


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("coral"), 3)


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("coral"), 3, [0, 1, 2, 3], torch.int64)
