"""Softmax where it would overflow."""

import numpy as np
import pytest

from ml.evaluation.scores import softmax


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_give_probabilities(dtype: type) -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [3e38, 0, -3e38], [0, 0, 1e-30]], dtype)
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1)
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3] * 3, [1, 0, 0], [1 / 3] * 3], atol=1e-15)


def test_equals_the_formula_and_ignores_a_common_shift() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5))
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-12)
    np.testing.assert_allclose(softmax(logits + 1000), expected, rtol=1e-9)
