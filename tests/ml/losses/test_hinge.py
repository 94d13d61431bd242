"""Multi-class hinge loss is torch's MultiMarginLoss."""

import pytest
import torch
from torch import nn

from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, step_of


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("margin", [0.5, 1.0, 3.0])
def test_equals_torch(power: int, margin: float) -> None:
    scores, labels = torch.randn(9, 4), torch.randint(0, 4, (9,))
    expected = nn.MultiMarginLoss(p=power, margin=margin)(scores, labels)
    loss = loss_of("hinge", power=power, margin=margin)
    torch.testing.assert_close(step_of(loss, scores, labels).float(), expected)


def test_is_zero_when_the_true_score_leads_by_the_margin() -> None:
    assert step_of(loss_of("hinge"), torch.tensor([[2.0, 1.0, -5.0]]), torch.tensor([0])) == 0


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("hinge"), 3)


@pytest.mark.parametrize("power", [1, 2])
def test_is_finite_at_extreme_scores(power: int) -> None:
    assert_finite_at_extremes(loss_of("hinge", power=power), 3, [0, 1, 2], torch.int64)
