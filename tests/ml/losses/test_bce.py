"""Binary cross-entropy is torch's, averaged over the labels of a row."""

import torch
from torch.nn import functional

from ml.losses.base import LossContext
from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, multi_hot, step_of

CONTEXT = LossContext(labels=("a", "b", "c"), train_counts={"a": 1, "b": 2, "c": 3})


def test_equals_torch() -> None:
    logits, hot = torch.randn(9, 3), multi_hot(9, 3)
    expected = functional.binary_cross_entropy_with_logits(logits, hot)
    torch.testing.assert_close(step_of(loss_of("bce"), logits, hot).float(), expected)


def test_equals_torch_with_weights_of_positives_by_name() -> None:
    logits, hot = torch.randn(9, 3), multi_hot(9, 3)
    loss = loss_of("bce", CONTEXT, pos_weight={"c": 5.0, "a": 1.0, "b": 2.0})
    expected = functional.binary_cross_entropy_with_logits(logits, hot, pos_weight=torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(step_of(loss, logits, hot).float(), expected)


def test_smoothing_moves_targets_towards_one_half() -> None:
    logits, hot = torch.randn(9, 3), multi_hot(9, 3)
    expected = functional.binary_cross_entropy_with_logits(logits, torch.where(hot > 0, 0.9, 0.1))
    torch.testing.assert_close(step_of(loss_of("bce", label_smoothing=0.2), logits, hot).float(), expected)


def test_two_labels_on_one_logit_are_cross_entropy_of_0_and_z() -> None:
    logits, labels = torch.randn(9, 1), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    expected = functional.cross_entropy(functional.pad(logits, (1, 0)), labels)
    torch.testing.assert_close(step_of(loss_of("bce"), logits, labels).float(), expected)


def test_of_two_labels_the_weight_is_that_of_the_second() -> None:
    context = LossContext(labels=("no", "yes"), train_counts={"no": 1, "yes": 1})
    logits, labels = torch.randn(4, 1), torch.tensor([0, 1, 1, 0])
    loss = loss_of("bce", context, pos_weight={"no": 7.0, "yes": 3.0})
    expected = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), pos_weight=torch.tensor([3.0]))
    torch.testing.assert_close(step_of(loss, logits, labels).float(), expected)


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("bce"), 1)


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("bce", label_smoothing=0.1), 2, [[0, 0], [0, 1], [1, 0], [1, 1]], torch.float32)
    assert_finite_at_extremes(loss_of("bce"), 1, [0, 1], torch.int64)
