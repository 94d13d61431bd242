"""V-REx against the mean and the variance of the groups' risks."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.v_rex import VRexLoss
from ml.models.outputs import Outputs
from ml.specs.losses.single_label import VRexSpec

SPEC = VRexSpec(type="v_rex")


def example() -> tuple[Tensor, Targets]:
    """Logits (N, 3) in float64, labels and groups (N,): of four groups the last has no row, two rows are ignored."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(20, 3, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 3, (20,), generator=generator)
    labels[[2, 9]] = IGNORED
    return logits, Targets(labels, groups=torch.tensor([0] * 11 + [1] * 6 + [2] * 3))


def step_loss(loss: Loss, logits: Tensor, targets: Targets) -> Tensor:
    """What the loop makes of a step."""
    return loss.numerators(Outputs(logits, logits), targets).sum() / loss.denominators(targets).sum()


def risks_of(logits: Tensor, targets: Targets) -> list[float]:
    """The mean cross-entropy of each of the three groups, row by row."""
    assert targets.groups is not None
    sums, rows = [0.0] * 3, [0] * 3
    for row, y, group in zip(logits.tolist(), targets.labels.tolist(), targets.groups.tolist(), strict=True):
        if y != IGNORED:
            sums[group] -= math.log(math.exp(row[y]) / sum(map(math.exp, row)))
            rows[group] += 1
    return [total / count for total, count in zip(sums, rows, strict=True)]


@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_equals_mean_and_variance_over_the_groups_that_are_present(beta: float) -> None:
    logits, targets = example()
    risks = risks_of(logits, targets)
    mean = sum(risks) / 3
    variance = sum((risk - mean) ** 2 for risk in risks) / 3
    value = step_loss(VRexLoss(beta=beta, groups=4), logits, targets)
    assert value.item() == pytest.approx(mean + beta * variance, rel=1e-9)


def test_one_group_is_cross_entropy() -> None:
    logits, targets = example()
    alone = Targets(targets.labels, torch.zeros_like(targets.labels))
    expected = functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED)
    torch.testing.assert_close(step_loss(VRexLoss(beta=10.0, groups=1), logits, alone), expected)


def test_its_gradient_is_that_of_mean_and_variance() -> None:
    logits, targets = example()
    assert targets.groups is not None
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    step_loss(VRexLoss(beta=3.0, groups=4), ours, targets).backward()  # type: ignore[no-untyped-call]
    losses = functional.cross_entropy(plain, targets.labels, ignore_index=IGNORED, reduction="none")
    counted = targets.labels != IGNORED
    risks = torch.stack([losses[counted & (targets.groups == group)].mean() for group in range(3)])
    (risks.mean() + 3.0 * risks.var(correction=0)).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-12)


def test_groups_that_do_alike_cost_no_more_than_their_mean() -> None:
    logits, targets = example()
    twice = Targets(targets.labels.repeat(2), torch.arange(2).repeat_interleave(20))
    value = step_loss(VRexLoss(beta=1000.0, groups=2), logits.repeat(2, 1), twice)
    torch.testing.assert_close(value, functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED))


def test_micro_batches_would_not_add_up_so_the_spec_says_that_rows_are_coupled() -> None:
    assert not SPEC.is_additive
    assert "groups" in SPEC.needs


def test_rows_without_groups_are_refused() -> None:
    logits, targets = example()
    with pytest.raises(ValueError, match="group of each row"):
        step_loss(VRexLoss(beta=1.0, groups=4), logits, Targets(targets.labels))


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, targets = example()
    ignored = targets.labels == IGNORED
    loss = VRexLoss(beta=1.0, groups=4)
    assert torch.equal(loss.denominators(targets) == 0, ignored)
    assert torch.equal(loss.numerators(Outputs(logits, logits), targets) == 0, ignored)
    none_left = Targets(torch.full_like(targets.labels, IGNORED), targets.groups)
    assert not loss.numerators(Outputs(logits, logits), none_left).any()


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]], requires_grad=True)
    targets = Targets(torch.zeros(3, dtype=torch.int64), groups=torch.tensor([0, 1, 1]))
    value = step_loss(VRexLoss(beta=1.0, groups=4), logits, targets)
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
