"""Binary hinge loss: by hand, and its side of 0."""

import pytest
import torch

from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, rows_of


def test_equals_the_formula_by_hand() -> None:
    scores = torch.tensor([[-2.0], [-0.5], [0.5], [2.0]])
    loss = loss_of("binary_hinge")
    assert rows_of(loss, scores, torch.ones(4, dtype=torch.int64)).tolist() == [3.0, 1.5, 0.5, 0.0]
    assert rows_of(loss, scores, torch.zeros(4, dtype=torch.int64)).tolist() == [0.0, 0.5, 1.5, 3.0]


def test_a_wider_margin_asks_for_more() -> None:
    loss = loss_of("binary_hinge", margin=2.5)
    assert rows_of(loss, torch.tensor([[1.0]]), torch.tensor([1])).item() == pytest.approx(1.5)


def test_an_output_column_against_a_row_of_labels_does_not_broadcast() -> None:
    assert rows_of(loss_of("binary_hinge"), torch.randn(9, 1), torch.randint(0, 2, (9,))).shape == (9,)


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("binary_hinge"), 1)


def test_is_finite_at_extreme_scores() -> None:
    assert_finite_at_extremes(loss_of("binary_hinge"), 1, [0, 1], torch.int64)
