"""Group DRO against Sagawa et al.'s algorithm, step by step."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.losses.group_dro import GroupDroLoss
from ml.models.outputs import Outputs
from ml.specs.losses.single_label import GroupDroSpec

SPEC = GroupDroSpec(type="group_dro")


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


def test_weights_and_loss_follow_the_exponentiated_gradient_over_steps() -> None:
    logits, targets = example()
    loss, weights = GroupDroLoss(step_size=0.5, groups=4), [0.25] * 4
    for _ in range(3):
        risks = [*risks_of(logits, targets), 0.0]
        raised = [q * math.exp(0.5 * risk) for q, risk in zip(weights, risks, strict=True)]
        weights = [q / sum(raised) for q in raised]
        expected = sum(q * risk for q, risk in zip(weights, risks, strict=True))
        assert step_loss(loss, logits, targets).item() == pytest.approx(expected, rel=1e-9)
        assert loss.group_weights.tolist() == pytest.approx(weights, rel=1e-9)
        logits = logits * 0.8


def test_one_group_is_cross_entropy() -> None:
    logits, targets = example()
    alone = Targets(targets.labels, torch.zeros_like(targets.labels))
    expected = functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED)
    torch.testing.assert_close(step_loss(GroupDroLoss(step_size=0.1, groups=1), logits, alone), expected)


def test_a_step_size_of_zero_keeps_every_group_alike() -> None:
    logits, targets = example()
    expected = sum(risks_of(logits, targets)) / 3
    value = step_loss(GroupDroLoss(step_size=0.0, groups=3), logits, targets)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_weights_move_in_training_alone() -> None:
    logits, targets = example()
    loss = GroupDroLoss(step_size=0.5, groups=4).eval()
    first, second = step_loss(loss, logits, targets), step_loss(loss, logits, targets)
    assert torch.equal(first, second)
    assert loss.group_weights.tolist() == pytest.approx([0.25] * 4)


def test_weights_travel_with_a_checkpoint() -> None:
    logits, targets = example()
    trained, restored = GroupDroLoss(step_size=0.5, groups=4), GroupDroLoss(step_size=0.5, groups=4)
    step_loss(trained, logits, targets)
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(restored.group_weights, trained.group_weights)


def test_a_group_long_outweighed_can_come_back() -> None:
    loss = GroupDroLoss(step_size=1.0, groups=2)
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    targets = Targets(torch.tensor([0, 0]), groups=torch.tensor([0, 1]))
    for _ in range(20):
        step_loss(loss, logits, targets)
    assert loss.group_weights.tolist() == [0, 1]  # e^−2000 is no float64
    for _ in range(40):
        step_loss(loss, logits.flip(0), targets)
    assert loss.group_weights.tolist() == [1, 0]


def test_its_gradient_is_that_of_its_value() -> None:
    logits, targets = example()
    loss = GroupDroLoss(step_size=0.1, groups=4).eval()
    assert torch.autograd.gradcheck(lambda z: step_loss(loss, z, targets), logits.requires_grad_())


def test_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="1 group or more"):
        GroupDroLoss(step_size=0.1, groups=0)


def test_micro_batches_would_not_add_up_so_the_spec_says_that_rows_are_coupled() -> None:
    assert not SPEC.is_additive
    assert "groups" in SPEC.needs


def test_rows_without_groups_are_refused() -> None:
    logits, targets = example()
    with pytest.raises(ValueError, match="group of each row"):
        step_loss(GroupDroLoss(step_size=0.01, groups=4), logits, Targets(targets.labels))


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, targets = example()
    ignored = targets.labels == IGNORED
    loss = GroupDroLoss(step_size=0.01, groups=4)
    assert torch.equal(loss.denominators(targets) == 0, ignored)
    assert torch.equal(loss.numerators(Outputs(logits, logits), targets) == 0, ignored)
    none_left = Targets(torch.full_like(targets.labels, IGNORED), targets.groups)
    assert not loss.numerators(Outputs(logits, logits), none_left).any()


def test_is_finite_with_a_finite_gradient_at_extreme_logits() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [200.0, 200.0]], requires_grad=True)
    targets = Targets(torch.zeros(3, dtype=torch.int64), groups=torch.tensor([0, 1, 1]))
    value = step_loss(GroupDroLoss(step_size=0.01, groups=4), logits, targets)
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
