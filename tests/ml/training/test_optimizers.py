"""Optimizers by their definition, the learning rate over the steps, and the clipping of gradients."""

import pytest
import torch
from torch import Tensor, nn

from ml.specs.job import AdamW, Schedule, Sgd
from ml.training.optimizers import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rate

# An objective that learns nothing of its own.
NOTHING = nn.Module()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_follows_its_definition() -> None:
    ours, rate, decay = network(), 0.01, 0.1
    optimizer = build_optimizer(AdamW(type="adamw", learning_rate=rate, weight_decay=decay), ours, NOTHING)
    expected = [p.detach().double().clone() for p in ours.parameters()]
    firsts = [torch.zeros_like(p) for p in expected]
    seconds = [torch.zeros_like(p) for p in expected]
    for step in (1, 2, 3):
        give_gradients(ours, step)
        gradients = [p.grad.double() for p in ours.parameters() if p.grad is not None]
        for p, g, m, v in zip(expected, gradients, firsts, seconds, strict=True):
            p.mul_(1 - rate * (decay if p.ndim > 1 else 0))
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            p.sub_(rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
        optimizer.step()
    for p, wanted in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(p.double(), wanted, rtol=1e-5, atol=1e-6)


def test_adamw_equals_torchs_unfused_kernel() -> None:
    ours, theirs = network(), network()
    fused = build_optimizer(AdamW(type="adamw", learning_rate=0.01, weight_decay=0.0), ours, NOTHING)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0, foreach=False, fused=False)
    for module, optimizer in ((ours, fused), (theirs, plain)):
        give_gradients(module, 1)
        optimizer.step()
    for p, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, wanted)


def test_sgd_follows_its_definition() -> None:
    ours, rate, momentum = network(), 0.1, 0.9
    spec = Sgd(type="sgd", learning_rate=rate, weight_decay=0.01, momentum=momentum)
    optimizer = build_optimizer(spec, ours, NOTHING)
    expected = [p.detach().clone() for p in ours.parameters()]
    velocities: list[Tensor | None] = [None] * len(expected)
    for step in (1, 2):
        give_gradients(ours, step)
        for i, p in enumerate(list(ours.parameters())):
            assert p.grad is not None
            g = p.grad + (0.01 if p.ndim > 1 else 0) * expected[i]
            previous = velocities[i]
            velocity = g if previous is None else momentum * previous + g
            velocities[i] = velocity
            expected[i] = expected[i] - rate * velocity
        optimizer.step()
    for p, wanted in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), wanted)


@pytest.mark.parametrize(
    "spec",
    [
        AdamW(type="adamw", learning_rate=0.1, weight_decay=0.5),
        Sgd(type="sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.0),
    ],
)
def test_weight_decay_spares_biases_and_norms(spec: AdamW | Sgd) -> None:
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer(spec, module, NOTHING)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for p, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * (0.95 if old.ndim > 1 else 1.0))


def test_only_trainable_parameters_are_given_to_the_optimizer() -> None:
    module = network()
    module[0].requires_grad_(False)  # type: ignore[index]
    optimizer = build_optimizer(AdamW(type="adamw", learning_rate=0.1), module, NOTHING)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in module.parameters() if p.requires_grad}


def test_what_an_objective_learns_is_trained_and_not_decayed() -> None:
    module, objective = network(), nn.Module()
    objective.balance = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = build_optimizer(AdamW(type="adamw", learning_rate=0.1, weight_decay=0.5), module, objective)
    for parameter in (*module.parameters(), objective.balance):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (objective.balance == 1).all()
    objective.balance.grad = torch.ones_like(objective.balance)
    optimizer.step()
    assert (objective.balance < 1).all()


def test_every_group_gets_the_rate() -> None:
    optimizer = build_optimizer(AdamW(type="adamw", learning_rate=0.1), network(), NOTHING)
    set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_the_rate_rises_in_warm_up_and_falls_linearly_to_zero_after_the_last_step() -> None:
    schedule = Schedule(type="linear", warmup=0.2)
    factors = [learning_rate_factor(schedule, step, 50) for step in range(51)]
    assert factors[0] > 0
    assert factors[:11] == sorted(set(factors[:11]))
    assert max(factors) == factors[10] == 1
    assert factors[10:] == pytest.approx([1 - i / 40 for i in range(41)])
    assert factors[49] > factors[50] == 0


def test_a_constant_rate_stays_after_warm_up() -> None:
    schedule = Schedule(type="constant", warmup=0.5)
    assert [learning_rate_factor(schedule, step, 4) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("kind", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_every_step_has_a_rate_above_zero_and_at_most_the_full_one(kind: str, warmup: float, steps: int) -> None:
    schedule = Schedule.model_validate({"type": kind, "warmup": warmup})
    for step in range(steps):
        assert 0 < learning_rate_factor(schedule, step, steps) <= 1


def test_clipping_reports_the_norm_there_was_before() -> None:
    module = network()
    give_gradients(module, 1)
    gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert float(clip_gradients(module, 0.5)) == pytest.approx(norm.item())
    for p, g in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g * 0.5 / norm, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("limit", [None, 1e6])
def test_gradients_within_the_limit_are_left_as_they_are(limit: float | None) -> None:
    module = network()
    give_gradients(module, 1)
    before = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    clip_gradients(module, limit)
    for p, g in zip(module.parameters(), before, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, g)
