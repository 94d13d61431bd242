"""Logit adjustment: priors of the training rows, and in the loss alone."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, LossContext, Targets
from ml.losses.logit_adjusted import LogitAdjustedLoss
from ml.models.outputs import Outputs

COUNTS = torch.tensor([90.0, 9.0, 1.0], dtype=torch.float64)


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


def test_equals_cross_entropy_when_labels_are_even() -> None:
    logits, labels = example()
    ours = losses_of(LogitAdjustedLoss(tau=1.5, label_counts=torch.full((3,), 40.0)), logits, labels)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_equals_its_formula_row_by_row(tau: float) -> None:
    logits, labels = example()
    ours = losses_of(LogitAdjustedLoss(tau=tau, label_counts=COUNTS), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        adjusted = [z + tau * math.log(n / 100) for z, n in zip(row, COUNTS.tolist(), strict=True)]
        assert got == pytest.approx(-math.log(probability(adjusted, y)), rel=1e-9)


def test_a_rare_label_must_win_clearer() -> None:
    losses = losses_of(LogitAdjustedLoss(tau=1.0, label_counts=COUNTS), torch.zeros(3, 3), torch.arange(3))
    assert losses[0] < losses[1] < losses[2]


def test_priors_are_those_of_the_training_rows_in_the_order_of_the_labels() -> None:
    context = LossContext(labels=("spam", "ham"), train_counts={"ham": 30, "spam": 10})
    loss = LogitAdjustedLoss(tau=1.0, label_counts=context.label_counts)
    assert loss.log_priors.exp().tolist() == pytest.approx([0.25, 0.75])


def test_what_the_model_answers_is_left_as_it_was() -> None:
    logits, labels = example()
    outputs = Outputs(logits.clone(), logits.clone())
    LogitAdjustedLoss(tau=1.0, label_counts=COUNTS).numerators(outputs, Targets(labels))
    assert torch.equal(outputs.logits, logits)


def test_a_label_without_training_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logit_adjusted .* \[1\] have 0"):
        LogitAdjustedLoss(tau=1.0, label_counts=torch.tensor([5.0, 0.0, 2.0]))


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(LogitAdjustedLoss(tau=2.0, label_counts=COUNTS), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = LogitAdjustedLoss(tau=1.0, label_counts=COUNTS)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
