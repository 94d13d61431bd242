"""Self-adjusting dice against its formula, class by class."""

import math

import pytest
import torch
from torch import Tensor

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.dice import DiceLoss
from ml.models.outputs import Outputs


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.01, 1.0])
def test_equals_its_formula_row_by_row(alpha: float, gamma: float) -> None:
    logits, labels = example()
    ours = losses_of(DiceLoss(alpha=alpha, gamma=gamma), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        expected = 0.0
        for c in range(3):
            eased = (1 - probability(row, c)) ** alpha * probability(row, c)
            expected += (1 - (2 * eased * (c == y) + gamma) / (eased + (c == y) + gamma)) / 3
        assert got == pytest.approx(expected, rel=1e-9)


def test_without_easing_a_perfect_row_costs_nothing_and_a_wrong_one_the_most() -> None:
    logits = torch.tensor([[50.0, -50.0], [-50.0, 50.0]], dtype=torch.float64)
    losses = losses_of(DiceLoss(alpha=0.0, gamma=1.0), logits, torch.tensor([0, 0]))
    assert losses.tolist() == pytest.approx([0.0, 0.5], abs=1e-12)  # 1 − 1/(1 + 1) for each of two classes


def test_its_gradient_is_that_of_its_value_with_the_weights_held() -> None:
    logits, labels = example(6)
    held = (1 - logits.softmax(-1)) ** 0.7
    y = torch.eye(3, dtype=torch.float64)[labels]

    def with_weights_held(z: Tensor) -> Tensor:
        eased = held * z.softmax(-1)
        return (1 - (2 * eased * y + 1) / (eased + y + 1)).mean(-1)

    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses_of(DiceLoss(alpha=0.7, gamma=1.0), ours, labels).sum().backward()  # type: ignore[no-untyped-call]
    with_weights_held(plain).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_raises_the_true_label_wherever_the_model_stands(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(200, classes, generator=generator, dtype=torch.float64) * 4
    logits.requires_grad_()
    losses_of(DiceLoss(alpha=1.0, gamma=1.0), logits, torch.zeros(200, dtype=torch.int64)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[:, 0] < 0).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_easy_row_pulls_less_than_a_hard_one(alpha: float) -> None:
    logits = torch.tensor([[4.0, 0.0], [0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    losses_of(DiceLoss(alpha=alpha, gamma=1.0), logits, torch.tensor([0, 0])).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    easy, hard = logits.grad.abs().sum(-1).tolist()
    assert easy < hard / 5


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 5.0])
def test_is_finite_with_a_finite_gradient_at_extreme_logits(alpha: float) -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(DiceLoss(alpha=alpha, gamma=1e-4), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = DiceLoss(alpha=1.0, gamma=1.0)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
