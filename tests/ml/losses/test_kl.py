"""Kullback-Leibler divergence takes logits, and divides by rows alone: torch's batchmean, not its mean."""

import math

import pytest
import torch
from torch.nn import functional

from tests.ml.losses.checks import assert_finite_at_extremes, assert_ignores_minus_100, loss_of, rows_of, step_of


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_torch_batchmean(temperature: float) -> None:
    logits, soft = torch.randn(9, 4), torch.rand(9, 4).softmax(-1)
    expected = functional.kl_div((logits / temperature).log_softmax(-1), soft, reduction="batchmean")
    torch.testing.assert_close(step_of(loss_of("kl", temperature=temperature), logits, soft).float(), expected)


def test_is_not_torch_mean_which_is_as_many_times_too_small_as_there_are_classes() -> None:
    logits, soft = torch.randn(9, 4), torch.rand(9, 4).softmax(-1)
    mean = (soft * (soft.log() - logits.log_softmax(-1))).mean()
    torch.testing.assert_close(step_of(loss_of("kl"), logits, soft).float(), 4 * mean)


def test_is_zero_at_the_given_distribution() -> None:
    soft = torch.rand(9, 4, dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(rows_of(loss_of("kl"), soft.log(), soft), torch.zeros(9, dtype=torch.float64))


def test_differs_from_soft_cross_entropy_by_the_entropy_and_not_in_its_gradient() -> None:
    logits, soft = torch.randn(9, 4, dtype=torch.float64, requires_grad=True), torch.rand(9, 4).softmax(-1).double()
    kl, cross_entropy = (rows_of(loss_of(name), logits, soft) for name in ("kl", "soft_cross_entropy"))
    torch.testing.assert_close(cross_entropy - kl, -(soft * soft.log()).sum(-1))
    gradients = [torch.autograd.grad(rows.sum(), logits)[0] for rows in (kl, cross_entropy)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_label_of_probability_zero_adds_nothing() -> None:
    rows = rows_of(loss_of("kl"), torch.zeros(1, 3), torch.tensor([[0.5, 0.5, 0.0]]))
    assert rows.item() == pytest.approx(math.log(3 / 2))


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("kl"), 3)


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("kl"), 3, [[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]], torch.float32)
