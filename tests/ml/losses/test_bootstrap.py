"""Bootstrapped cross-entropy against its targets, written out."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.bootstrap import BootstrapLoss
from ml.models.outputs import Outputs
from ml.specs.losses.single_label import BootstrapSpec


def example(rows: int = 20) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(0, 3, (rows,), generator=generator)


def losses_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    return loss.numerators(Outputs(logits, logits), Targets(labels))


def probability(row: list[float], label: int) -> float:
    return math.exp(row[label]) / sum(map(math.exp, row))


def gradient(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    moved = logits.clone().requires_grad_()
    return torch.autograd.grad(losses_of(loss, moved, labels).sum(), moved)[0]


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_equals_cross_entropy_when_the_label_is_trusted_alone(mode: str) -> None:
    logits, labels = example()
    ours = losses_of(BootstrapLoss(mode=mode, beta=1.0), logits, labels)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("beta", [0.0, 0.6, 0.95])
def test_equals_its_formula_row_by_row(mode: str, beta: float) -> None:
    logits, labels = example()
    ours = losses_of(BootstrapLoss(mode=mode, beta=beta), logits, labels)
    for row, y, got in zip(logits.tolist(), labels.tolist(), ours.tolist(), strict=True):
        p = [probability(row, c) for c in range(3)]
        own = p if mode == "soft" else [float(c == p.index(max(p))) for c in range(3)]
        expected = -sum((beta * (c == y) + (1 - beta) * own[c]) * math.log(p[c]) for c in range(3))
        assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("mode", "beta"), [("soft", 0.95), ("hard", 0.8)])
def test_trust_left_out_is_that_of_the_mode(mode: str, beta: float) -> None:
    logits, labels = example()
    spec = BootstrapSpec.model_validate({"type": "bootstrap", "mode": mode})
    ours = losses_of(BootstrapLoss(mode=spec.mode, beta=spec.beta), logits, labels)
    assert torch.equal(ours, losses_of(BootstrapLoss(mode=mode, beta=beta), logits, labels))


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_the_mixed_target_is_a_constant_to_the_gradient(mode: str) -> None:
    logits, labels = example()
    p, y = logits.softmax(-1), functional.one_hot(labels, 3).double()
    own = p if mode == "soft" else functional.one_hot(p.argmax(-1), 3).double()
    expected = p - (0.7 * y + 0.3 * own)
    torch.testing.assert_close(gradient(BootstrapLoss(mode=mode, beta=0.7), logits, labels), expected)


def test_soft_has_beta_times_the_gradient_of_cross_entropy() -> None:
    logits, labels = example()
    cross_entropy = gradient(BootstrapLoss(mode="soft", beta=1.0), logits, labels)
    torch.testing.assert_close(gradient(BootstrapLoss(mode="soft", beta=0.7), logits, labels), 0.7 * cross_entropy)


def test_hard_believes_a_sure_model_over_a_label_it_trusts_little() -> None:
    logits, label = torch.tensor([[2.0, -1.0, -1.0]], dtype=torch.float64), torch.tensor([1])
    slope = gradient(BootstrapLoss(mode="hard", beta=0.05), logits, label)
    assert slope[0, 0] < 0 < gradient(BootstrapLoss(mode="hard", beta=1.0), logits, label)[0, 0]


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_is_finite_with_a_finite_gradient_at_extreme_logits(mode: str) -> None:
    extremes = [[200.0, -200.0, -200.0], [-200.0, 200.0, 200.0], [200.0, 200.0, 200.0], [-200.0, -200.0, 200.0]]
    logits = torch.tensor(extremes, requires_grad=True)
    losses = losses_of(BootstrapLoss(mode=mode, beta=0.5), logits, torch.zeros(4, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, labels = example(5)
    labels[[0, 3]] = IGNORED
    loss = BootstrapLoss(mode="hard", beta=None)
    assert loss.denominators(Targets(labels)).tolist() == [0, 1, 1, 0, 1]
    assert (losses_of(loss, logits, labels) == 0).tolist() == [True, False, False, True, False]
