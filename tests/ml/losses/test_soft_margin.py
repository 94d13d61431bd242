"""Multi-label soft margin loss is torch's."""

import torch
from torch import nn

from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, multi_hot, rows_of


def test_equals_torch() -> None:
    logits, hot = torch.randn(9, 4), multi_hot(9, 4)
    expected = nn.MultiLabelSoftMarginLoss(reduction="none")(logits, hot)
    torch.testing.assert_close(rows_of(loss_of("soft_margin"), logits, hot), expected)


def test_equals_bce() -> None:
    logits, hot = torch.randn(9, 4), multi_hot(9, 4)
    torch.testing.assert_close(rows_of(loss_of("soft_margin"), logits, hot), rows_of(loss_of("bce"), logits, hot))


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("soft_margin"), 2, [[0, 0], [0, 1], [1, 0], [1, 1]], torch.float32)
