"""CORN: each question for the rows it concerns, the division by questions, and its own decoding."""

import math

import numpy as np
import pytest
import torch

from ml.losses.base import LossContext, Targets
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


def _reading(classes: int):
    return label_reading(LOSS_SPECS["corn"].readings["ordinal"], [str(level) for level in range(classes)])


def test_equals_a_slow_loop_over_questions() -> None:
    logits, levels = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 4, (20,))
    total, asked = 0.0, 0
    for k in range(3):
        for row, y in zip(logits.tolist(), levels.tolist(), strict=True):
            if y > k - 1:
                total += math.log1p(math.exp(-row[k] if y > k else row[k]))
                asked += 1
    assert step_of(loss_of("corn", LEVELS), logits, levels).item() == pytest.approx(total / asked, rel=1e-10)


def test_a_row_counts_as_many_times_as_it_answers_questions() -> None:
    denominators = loss_of("corn", LEVELS).denominators(Targets(torch.tensor([0, 1, 2, 3, -100])))
    assert denominators.tolist() == [1, 2, 3, 3, 0]


def test_divides_right_however_a_step_is_cut() -> None:
    loss, logits, levels = loss_of("corn", LEVELS), torch.randn(6, 3), torch.tensor([0, 0, 0, 3, 3, 3])
    whole = step_of(loss, logits, levels)
    numerators = [rows_of(loss, logits[part], levels[part]).sum() for part in (slice(0, 3), slice(3, 6))]
    denominators = [loss.denominators(Targets(levels[part])).sum() for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(numerators) / sum(denominators), whole)
    mean_of_means = sum(n / d for n, d in zip(numerators, denominators, strict=True)) / 2
    assert not torch.isclose(mean_of_means, whole)


def test_is_the_log_likelihood_that_its_reading_gives() -> None:
    logits, levels = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 4, (20,))
    scores = _reading(4).scores(logits.numpy())[np.arange(20), levels.numpy()]
    np.testing.assert_allclose(rows_of(loss_of("corn", LEVELS), logits, levels).numpy(), -np.log(scores))


def test_is_decoded_by_running_products_and_not_as_coral() -> None:
    # Each question is more likely answered yes, but all of them together are not: 0.8, 0.64, 0.512, 0.4096.
    outputs = np.full((1, 4), np.log(0.8 / 0.2))
    corn, coral = _reading(5), label_reading("cumulative", "abcde")
    assert corn.best(corn.scores(outputs)) == [3]
    assert coral.best(coral.scores(outputs)) == [4]
    expected = [0.2, 0.8 * 0.2, 0.8**2 * 0.2, 0.8**3 * 0.2, 0.8**4]
    np.testing.assert_allclose(corn.scores(outputs)[0], expected)


def test_its_reading_gives_probabilities() -> None:
    scores = _reading(4).scores(3 * torch.randn(50, 3).numpy())
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-12)


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("corn", LEVELS), 3)


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("corn", LEVELS), 3, [0, 1, 2, 3], torch.int64)


def test_is_binary_cross_entropy_of_two_levels() -> None:
    context = LossContext(labels=("no", "yes"), train_counts={"no": 1, "yes": 1})
    logits, levels = torch.randn(9, 1), torch.randint(0, 2, (9,))
    expected = step_of(loss_of("coral"), logits, levels)
    torch.testing.assert_close(step_of(loss_of("corn", context), logits, levels), expected)
