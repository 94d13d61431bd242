"""Optimizers by their definition, the groups of parameters they take, and the clipping of gradients."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from ml.models.classifier import load_native
from ml.models.layers import part_of
from ml.specs.optimizers import AdamW, Lion, Optimizer, Sgd
from ml.training.optimizers import build_optimizer, clip_gradients, set_learning_rate

# An objective that learns nothing of its own.
NOTHING = nn.Module()

# A matrix or a vector, its gradient at each step, and its decay, to what it becomes. All in float64.
Definition = Callable[[Any, Tensor, Sequence[Tensor], float], Tensor]


def sgd(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    velocity = torch.zeros_like(x)
    for g in gradients:
        slope = g + decay * x
        velocity = spec.momentum * velocity + slope
        x = x - spec.learning_rate * (slope + spec.momentum * velocity if spec.nesterov else velocity)
    return x


def adam(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, gradient in enumerate(gradients, 1):
        g = gradient + decay * x
        m = spec.beta1 * m + (1 - spec.beta1) * g
        v = spec.beta2 * v + (1 - spec.beta2) * g**2
        m_hat, v_hat = m / (1 - spec.beta1**t), v / (1 - spec.beta2**t)
        x = x - spec.learning_rate * m_hat / (v_hat.sqrt() + spec.epsilon)
    return x


def adamw(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m = spec.beta1 * m + (1 - spec.beta1) * g
        v = spec.beta2 * v + (1 - spec.beta2) * g**2
        m_hat, v_hat = m / (1 - spec.beta1**t), v / (1 - spec.beta2**t)
        x = x - spec.learning_rate * (m_hat / (v_hat.sqrt() + spec.epsilon) + decay * x)
    return x


def adamax(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    m, u = torch.zeros_like(x), torch.zeros_like(x)
    for t, gradient in enumerate(gradients, 1):
        g = gradient + decay * x
        m = spec.beta1 * m + (1 - spec.beta1) * g
        u = torch.maximum(spec.beta2 * u, g.abs() + spec.epsilon)
        x = x - spec.learning_rate / (1 - spec.beta1**t) * m / u
    return x


def adafactor(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    rows = columns = whole = torch.zeros(())
    for t, g in enumerate(gradients, 1):
        fresh = t**spec.beta2_decay
        if g.ndim > 1:
            rows = (1 - fresh) * rows + fresh * (g**2).mean(1, keepdim=True)
            columns = (1 - fresh) * columns + fresh * (g**2).mean(0, keepdim=True)
            v = rows * columns / rows.mean()
        else:
            v = whole = (1 - fresh) * whole + fresh * g**2
        update = g / v.sqrt()
        update = update / max(1.0, rms(update) / spec.clip_threshold)
        size = max(spec.epsilon, rms(x)) * min(spec.learning_rate, t**-0.5)
        x = x - spec.learning_rate * decay * x - size * update
    return x


def lamb(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m = spec.beta1 * m + (1 - spec.beta1) * g
        v = spec.beta2 * v + (1 - spec.beta2) * g**2
        r = m / (1 - spec.beta1**t) / ((v / (1 - spec.beta2**t)).sqrt() + spec.epsilon) + decay * x
        ratio = x.norm() / r.norm() if x.ndim > 1 else 1.0
        x = x - spec.learning_rate * ratio * r
    return x


def lion(spec: Any, x: Tensor, gradients: Sequence[Tensor], decay: float) -> Tensor:
    m = torch.zeros_like(x)
    for g in gradients:
        direction = torch.sign(spec.beta1 * m + (1 - spec.beta1) * g)
        x = x - spec.learning_rate * (direction + decay * x)
        m = spec.beta2 * m + (1 - spec.beta2) * g
    return x


def rms(x: Tensor) -> float:
    return float((x**2).mean().sqrt())


ADAM = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
DEFINED: list[tuple[Definition, dict[str, Any]]] = [
    (sgd, {"type": "sgd", "momentum": 0.8}),
    (sgd, {"type": "sgd", "momentum": 0.8, "nesterov": True}),
    (sgd, {"type": "sgd", "momentum": 0.0}),
    (adam, {"type": "adam", **ADAM}),
    (adamw, {"type": "adamw", **ADAM}),
    (adamax, {"type": "adamax", **ADAM}),
    (adafactor, {"type": "adafactor", "beta2_decay": -0.7, "clip_threshold": 1.1, "epsilon": 0.5}),
    (adafactor, {"type": "adafactor", "epsilon": 1e-2}),
    (lamb, {"type": "lamb", **ADAM}),
    (lion, {"type": "lion", "beta1": 0.8, "beta2": 0.95}),
]
TYPES = sorted({spec["type"] for _, spec in DEFINED})


def spec_of(**fields: Any) -> Optimizer:
    spec: Optimizer = TypeAdapter(Optimizer).validate_python(fields)
    return spec


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [p.grad.double().clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("definition", "fields"), DEFINED)
def test_every_optimizer_follows_its_definition(definition: Definition, fields: dict[str, Any], decay: float) -> None:
    ours, spec = network(), spec_of(learning_rate=0.05, weight_decay=decay, **fields)
    before = [p.detach().double().clone() for p in ours.parameters()]
    optimizer = build_optimizer(spec, ours, NOTHING)
    by_step = []
    for step in (1, 2, 3, 4):
        give_gradients(ours, step)
        by_step.append(gradients_of(ours))
        optimizer.step()
    for k, (p, old) in enumerate(zip(ours.parameters(), before, strict=True)):
        wanted = definition(spec, old, [gradients[k] for gradients in by_step], decay if p.ndim > 1 else 0.0)
        torch.testing.assert_close(p.double(), wanted, rtol=1e-5, atol=1e-6)


def test_every_type_has_a_definition_here() -> None:
    known = TypeAdapter(Optimizer).json_schema()["anyOf"][0]["discriminator"]["mapping"]
    assert sorted(known) == TYPES


def test_adamw_equals_torchs_unfused_kernel() -> None:
    ours, theirs = network(), network()
    fused = build_optimizer(AdamW(type="adamw", learning_rate=0.01, weight_decay=0.0), ours, NOTHING)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0, foreach=False, fused=False)
    for module, optimizer in ((ours, fused), (theirs, plain)):
        give_gradients(module, 1)
        optimizer.step()
    for p, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, wanted)


@pytest.mark.parametrize("kind", TYPES)
def test_weight_decay_spares_biases_and_norms(kind: str) -> None:
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer(spec_of(type=kind, learning_rate=0.1, weight_decay=0.5), module, NOTHING)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for p, old in zip(module.parameters(), before, strict=True):
        if p.ndim > 1:
            assert p.norm() < 0.99 * old.norm()
        else:
            assert torch.equal(p, old)


def test_a_matrix_of_zeros_can_leave_zero_with_lamb() -> None:
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    optimizer = build_optimizer(spec_of(type="lamb", learning_rate=0.1), module, NOTHING)
    give_gradients(module, 1)
    optimizer.step()
    torch.testing.assert_close(module.weight.abs(), torch.full((2, 3), 0.1), rtol=1e-4, atol=0)


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


@pytest.mark.parametrize("kind", [Sgd, AdamW, Lion])
def test_layer_decay_slows_a_layer_down_the_more_the_deeper_it_lies(kind: Any, tiny_base: Path) -> None:
    module = load_native(tiny_base, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=None)
    spec = kind(type=kind.__name__.lower(), learning_rate=1.0, layer_decay=0.5, weight_decay=0.0)
    optimizer = build_optimizer(spec, module, NOTHING)
    set_learning_rate(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rates = {"embeddings": 0.0125, "layer.0": 0.025, "layer.1": 0.05, None: 0.1}
    for name, p in module.named_parameters():
        torch.testing.assert_close(before[name] - p, torch.full_like(p, rates[part_of(name)]), rtol=1e-3, atol=1e-6)


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
