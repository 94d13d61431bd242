"""Cross-entropy with soft labels is torch's with probabilities."""

import pytest
import torch
from torch.nn import functional

from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, step_of


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_torch(temperature: float) -> None:
    logits, soft = torch.randn(9, 4), torch.rand(9, 4).softmax(-1)
    expected = functional.cross_entropy(logits / temperature, soft)
    loss = loss_of("soft_cross_entropy", temperature=temperature)
    torch.testing.assert_close(step_of(loss, logits, soft).float(), expected)


def test_is_cross_entropy_of_plain_labels() -> None:
    logits, labels = torch.randn(9, 4), torch.randint(0, 4, (9,))
    expected = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(step_of(loss_of("soft_cross_entropy"), logits, labels).float(), expected)


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("soft_cross_entropy"), 3)


def test_is_finite_at_extreme_logits() -> None:
    labels = [[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]]
    assert_finite_at_extremes(loss_of("soft_cross_entropy"), 3, labels, torch.float32)
