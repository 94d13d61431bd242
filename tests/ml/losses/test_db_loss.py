"""Distribution-balanced loss: a loop over Huang et al.'s formula, and labels at the ends of frequency."""

import math

import pytest
import torch

from ml.losses.base import LossContext
from tests.ml.losses.checks import assert_finite_at_extremes, loss_of, multi_hot, rows_of

COUNTS = {"common": 40, "usual": 12, "rare": 2}
CONTEXT = LossContext(labels=tuple(COUNTS), train_counts=COUNTS, train_rows=50)


def _slow(row: list[float], given: list[float]) -> float:
    counts, total = list(COUNTS.values()), 0.0
    rarity = sum(1 / n for n, y in zip(counts, given, strict=True) if y)
    for z, y, n in zip(row, given, counts, strict=True):
        share = 1 / n / rarity if rarity else math.inf
        weight = 0.1 + 1 / (1 + math.exp(-10 * (share - 0.9)))
        shifted = z - 0.05 * math.log(50 / n - 1)
        p = 1 / (1 + math.exp(-shifted if y else 2 * shifted))
        total += weight * (1 - p) ** 2 * -math.log(p) * (1 if y else 1 / 2)
    return total / len(counts)


def test_equals_a_slow_loop() -> None:
    logits, hot = 3 * torch.randn(12, 3, dtype=torch.float64), multi_hot(12, 3)
    expected = [_slow(row, given) for row, given in zip(logits.tolist(), hot.tolist(), strict=True)]
    assert rows_of(loss_of("db_loss", CONTEXT), logits, hot).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_rare_label_weighs_more_than_a_common_one_of_the_same_row() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = rows_of(loss_of("db_loss", CONTEXT, init_bias=0.0), logits, torch.tensor([[1.0, 0.0, 1.0]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0, 2].abs() > 2 * gradient[0, 0].abs()


def test_is_finite_for_labels_that_no_row_or_every_row_has() -> None:
    context = LossContext(labels=("none", "all"), train_counts={"none": 0, "all": 9}, train_rows=9)
    assert_finite_at_extremes(loss_of("db_loss", context), 2, [[0, 0], [0, 1], [1, 0], [1, 1]], torch.float32)


def test_refuses_fewer_rows_than_a_label_has() -> None:
    with pytest.raises(ValueError, match="0 training rows, but 40 rows of one label"):
        loss_of("db_loss", LossContext(labels=tuple(COUNTS), train_counts=COUNTS))
