"""ArcFace against angles worked out with acos, and at the ends where those have no gradient."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.arcface import ArcFaceLoss
from ml.losses.base import IGNORED, Loss, Targets
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
    logits, labels = example()
    ours = losses_of(ArcFaceLoss(margin_degrees=0.0, scale=SCALE), logits, labels)
    expected = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("margin_degrees", [5.0, 28.6, 60.0])
def test_equals_its_formula_row_by_row(margin_degrees: float) -> None:
    logits, labels = example()
    margin, beyond = math.radians(margin_degrees), 0
    ours = losses_of(ArcFaceLoss(margin_degrees=margin_degrees, scale=SCALE), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        cosines = [z / SCALE for z in row]
        angle = math.acos(cosines[y])
        beyond += angle + margin >= math.pi
        in_range = angle + margin < math.pi
        cosines[y] = math.cos(angle + margin) if in_range else cosines[y] - margin * math.sin(margin)
        expected = -math.log(probability([SCALE * c for c in cosines], y))
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert 0 < beyond < len(labels)


def test_the_loss_falls_as_the_angle_closes_all_the_way_from_the_far_side() -> None:
    logits = torch.zeros(181, 2, dtype=torch.float64)
    logits[:, 0] = SCALE * torch.cos(torch.deg2rad(torch.arange(181, dtype=torch.float64)))
    losses = losses_of(ArcFaceLoss(margin_degrees=28.6, scale=SCALE), logits, torch.zeros(181, dtype=torch.int64))
    assert (losses.diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_gradient_is_finite_where_the_angle_is_none_or_half_a_turn(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).eps
    cosines = torch.tensor([1 + tiny, 1, 1 - tiny, -1 + tiny, -1, -1 - tiny], dtype=dtype)
    logits = torch.stack([SCALE * cosines, torch.zeros_like(cosines)], -1).requires_grad_()
    losses = losses_of(ArcFaceLoss(margin_degrees=28.6, scale=SCALE), logits, torch.zeros(6, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_head_that_points_exactly_at_the_features_trains_on() -> None:
    head = CosineHead(4, 3, SCALE)
    losses = losses_of(ArcFaceLoss(margin_degrees=28.6, scale=SCALE), head(head.weight.detach() * 3), torch.arange(3))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert head.weight.grad is not None
    assert torch.isfinite(head.weight.grad).all()


def test_what_the_model_answers_is_left_as_it_was() -> None:
    logits, labels = example()
    outputs = Outputs(logits.clone(), logits.clone())
    ArcFaceLoss(margin_degrees=28.6, scale=SCALE).numerators(outputs, Targets(labels))
    assert torch.equal(outputs.logits, logits)


def test_its_gradient_is_that_of_its_value() -> None:
    logits, labels = example(6)
    loss = ArcFaceLoss(margin_degrees=28.6, scale=SCALE)
    assert torch.autograd.gradcheck(lambda z: losses_of(loss, z, labels), logits.requires_grad_())


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(ArcFaceLoss(margin_degrees=28.6, scale=64.0), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = ArcFaceLoss(margin_degrees=28.6, scale=SCALE)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
