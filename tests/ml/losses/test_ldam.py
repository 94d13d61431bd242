"""LDAM: margins by hand, and weights from the deferred epoch on."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.ldam import LdamLoss
from ml.models.outputs import Outputs

COUNTS = torch.tensor([1600.0, 81.0, 1.0], dtype=torch.float64)
SCALE = 30.0


def ldam(max_margin: float = 0.5, deferred_epoch: int | None = None, counts: Tensor = COUNTS) -> LdamLoss:
    return LdamLoss(max_margin=max_margin, scale=SCALE, deferred_epoch=deferred_epoch, label_counts=counts)


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Scaled cosines (N, 3) in float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = SCALE * torch.tanh(torch.randn(rows, 3, generator=generator, dtype=torch.float64) / 2)
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


def test_margins_go_with_the_fourth_root_and_the_rarest_label_has_the_widest() -> None:
    assert ldam().margins.tolist() == pytest.approx([0.5 / 1600**0.25, 0.5 / 3, 0.5])


def test_equals_cross_entropy_on_scaled_cosines_when_the_margin_is_zero() -> None:
    logits, labels = example()
    ours = losses_of(ldam(max_margin=0.0), logits, labels)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-12, atol=0)


def test_equals_its_formula_row_by_row() -> None:
    logits, labels = example()
    ours = losses_of(ldam(), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        cosines = [z / SCALE for z in row]
        cosines[y] -= 0.5 * COUNTS[y].item() ** -0.25 / max(n**-0.25 for n in COUNTS.tolist())
        assert got == pytest.approx(-math.log(probability([SCALE * c for c in cosines], y)), rel=1e-9)


def test_rows_are_weighted_by_effective_number_from_the_deferred_epoch_on() -> None:
    logits, labels = example()
    loss, plain = ldam(deferred_epoch=2), ldam()
    effective = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS.tolist()]
    weights = torch.tensor([3 * w / sum(effective) for w in effective], dtype=torch.float64)
    for epoch in range(4):
        loss.begin_epoch(epoch)
        expected = weights[labels] if epoch >= 2 else torch.ones(len(labels), dtype=torch.float64)
        torch.testing.assert_close(loss.denominators(Targets(labels)), expected, rtol=1e-9, atol=0)
        numerators = expected * losses_of(plain, logits, labels)
        torch.testing.assert_close(losses_of(loss, logits, labels), numerators, rtol=1e-9, atol=0)


def test_weights_deferred_to_epoch_zero_are_there_from_the_start() -> None:
    labels = torch.arange(3)
    assert ldam(deferred_epoch=0).denominators(Targets(labels)).tolist() != [1, 1, 1]
    assert ldam(deferred_epoch=None).denominators(Targets(labels)).tolist() == [1, 1, 1]


def test_what_the_model_answers_is_left_as_it_was() -> None:
    logits, labels = example()
    outputs = Outputs(logits.clone(), logits.clone())
    ldam().numerators(outputs, Targets(labels))
    assert torch.equal(outputs.logits, logits)


def test_a_label_without_training_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ldam .* \[1\] have 0"):
        ldam(counts=torch.tensor([5.0, 0.0, 2.0]))


def test_its_gradient_is_that_of_its_value() -> None:
    logits, labels = example(6)
    assert torch.autograd.gradcheck(lambda z: losses_of(ldam(deferred_epoch=0), z, labels), logits.requires_grad_())


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(ldam(deferred_epoch=0), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = ldam()
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]


def test_ignored_rows_count_nowhere_once_rows_are_weighted() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = ldam(deferred_epoch=0)
    assert (loss.denominators(Targets(labels)) == 0).tolist() == [True, False, False, True, False]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
