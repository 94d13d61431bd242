"""ZLPR: a loop over the paper's formula, one label as logistic loss, and its reading at 0."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ml.specs.losses.table import LOSS_SPECS
from ml.tasks.readings import label_reading
from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, multi_hot, rows_of


def test_equals_a_slow_loop() -> None:
    scores, hot = 3 * torch.randn(12, 5, dtype=torch.float64), multi_hot(12, 5)
    expected = []
    for row, given in zip(scores.tolist(), hot.tolist(), strict=True):
        pairs = list(zip(row, given, strict=True))
        negatives = sum(math.exp(z) for z, y in pairs if not y)
        positives = sum(math.exp(-z) for z, y in pairs if y)
        expected.append(math.log(1 + negatives) + math.log(1 + positives))
    assert rows_of(loss_of("zlpr"), scores, hot).tolist() == pytest.approx(expected, rel=1e-10)


def test_is_binary_cross_entropy_of_a_single_label() -> None:
    scores, hot = torch.randn(9, 1), multi_hot(9, 1)
    expected = functional.binary_cross_entropy_with_logits(scores, hot, reduction="none")[:, 0]
    torch.testing.assert_close(rows_of(loss_of("zlpr"), scores, hot), expected)


def test_learns_scores_that_its_reading_decodes_at_zero() -> None:
    hot = multi_hot(8, 5)
    scores = torch.zeros(8, 5, requires_grad=True)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(rows_of(loss_of("zlpr"), scores, hot).sum(), scores)
        scores = (scores - gradient).detach().requires_grad_()
    reading = label_reading(LOSS_SPECS["zlpr"].readings["multi_label"], "abcde")
    assert not reading.has_probabilities
    np.testing.assert_array_equal(reading.scores(scores.detach().numpy()) >= 0.5, hot.numpy() > 0)


def test_is_finite_at_extreme_scores() -> None:
    assert_finite_at_extremes(loss_of("zlpr"), 2, [[0, 0], [0, 1], [1, 0], [1, 1]], torch.float32)
