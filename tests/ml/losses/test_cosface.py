"""CosFace against its formula, on the outputs of a cosine head."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.cosface import CosFaceLoss
from ml.models.heads import CosineHead
from ml.models.outputs import Outputs

SCALE = 16.0


def example(rows: int = 40) -> tuple[Tensor, Tensor]:
    """Scaled cosines (N, 3) in float64, from near −1 to near 1, and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = SCALE * torch.tanh(torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 2)
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


def test_equals_cross_entropy_on_scaled_cosines_when_the_margin_is_zero() -> None:
    labels = example(8)[1]
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    head = CosineHead(5, 3, SCALE)
    ours = losses_of(CosFaceLoss(margin=0.0, scale=SCALE), head(features), labels)
    cosines = functional.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    expected = functional.cross_entropy(SCALE * cosines, labels, reduction="none")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("margin", [0.1, 0.35, 1.0])
def test_equals_its_formula_row_by_row(margin: float) -> None:
    logits, labels = example()
    ours = losses_of(CosFaceLoss(margin=margin, scale=SCALE), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        cosines = [z / SCALE for z in row]
        cosines[y] -= margin
        expected = -math.log(probability([SCALE * c for c in cosines], y))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)  # digits are gone where p is nearly 1


def test_what_the_model_answers_is_left_as_it_was() -> None:
    logits, labels = example()
    outputs = Outputs(logits.clone(), logits.clone())
    CosFaceLoss(margin=0.35, scale=SCALE).numerators(outputs, Targets(labels))
    assert torch.equal(outputs.logits, logits)


def test_its_gradient_is_that_of_its_value() -> None:
    logits, labels = example(6)
    loss = CosFaceLoss(margin=0.35, scale=SCALE)
    assert torch.autograd.gradcheck(lambda z: losses_of(loss, z, labels), logits.requires_grad_())


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(CosFaceLoss(margin=0.35, scale=SCALE), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = CosFaceLoss(margin=0.35, scale=SCALE)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
