"""The learning rate over the steps: each schedule by its closed form, and what holds for all of them."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from ml.specs.optimizers import Schedule
from ml.training.schedules import learning_rate_factor

TYPES = sorted(TypeAdapter(Schedule).json_schema()["anyOf"][0]["discriminator"]["mapping"])


def factors(count: int, **fields: Any) -> list[float]:
    """Of every step of a run, and of the one after the last."""
    schedule: Schedule = TypeAdapter(Schedule).validate_python(fields)
    return [learning_rate_factor(schedule, step, count) for step in range(count + 1)]


def test_there_are_seven() -> None:
    named = ["constant", "cosine", "cosine_restarts", "inverse_sqrt", "linear", "one_cycle", "polynomial"]
    assert named == TYPES


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "one_cycle"])
def test_in_warm_up_the_rate_rises_in_equal_parts_from_above_zero_to_the_full_one(kind: str) -> None:
    assert factors(50, type=kind, warmup=0.2)[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_every_step_has_a_rate_above_zero_and_at_most_the_full_one(kind: str, warmup: float, steps: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(steps, type=kind, warmup=warmup)[:-1])


@pytest.mark.parametrize("kind", TYPES)
def test_a_schedule_does_not_jump_at_the_end_of_its_warm_up(kind: str) -> None:
    found = factors(10_000, type=kind, warmup=0.25)
    assert found[2500] == 1
    assert found[2499] == pytest.approx(1, abs=1e-3)
    assert found[2501] == pytest.approx(1, abs=1e-3)


def test_constant_stays() -> None:
    assert factors(4, type="constant", warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_linear_falls_to_zero_after_the_last_step() -> None:
    assert factors(50, type="linear", warmup=0.2)[10:] == pytest.approx([1 - i / 40 for i in range(41)])


def test_cosine_is_half_a_cosine() -> None:
    wanted = [0.5 + 0.5 * math.cos(math.pi * i / 40) for i in range(41)]
    assert factors(50, type="cosine", warmup=0.2)[10:] == pytest.approx(wanted)


def test_cosine_restarts_begin_anew_at_the_full_rate() -> None:
    cycle = [0.5 + 0.5 * math.cos(math.pi * i / 12) for i in range(12)]
    found = factors(40, type="cosine_restarts", cycles=3, warmup=0.1)
    assert found[4:-1] == pytest.approx(cycle * 3)
    assert found[4] == found[16] == found[28] == 1


def test_cycles_that_do_not_divide_the_steps_are_of_equal_length_all_the_same() -> None:
    found = factors(10, type="cosine_restarts", cycles=3, warmup=0.0)[:-1]
    assert found == pytest.approx([0.5 + 0.5 * math.cos(math.pi * math.modf(0.3 * i + 1e-12)[0]) for i in range(10)])


def test_polynomial_is_a_power_of_what_is_left() -> None:
    found = factors(50, type="polynomial", power=3, end_factor=0.1, warmup=0.2)
    assert found[10:] == pytest.approx([0.1 + 0.9 * (1 - i / 40) ** 3 for i in range(41)])
    assert factors(50, type="polynomial", power=1) == pytest.approx(factors(50, type="linear"))


def test_inverse_sqrt_is_that_of_the_attention_paper() -> None:
    warm = 11  # the eleventh step is the first at the full rate
    wanted = [warm**0.5 * min(step**-0.5, step * warm**-1.5) for step in range(1, 52)]
    assert factors(50, type="inverse_sqrt", warmup=0.2) == pytest.approx(wanted)


def test_one_cycle_is_torchs() -> None:
    steps = 50
    theirs = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        theirs,
        max_lr=1.0,
        total_steps=steps + 1,
        pct_start=(15 + 1) / (steps + 1),  # they count the steps between the first and the highest
        div_factor=20,
        final_div_factor=100,
        cycle_momentum=False,
    )
    wanted = []
    for _ in range(steps + 1):
        wanted.append(scheduler.get_last_lr()[0])
        theirs.step()
        if len(wanted) <= steps:
            scheduler.step()
    found = factors(steps, type="one_cycle", warmup=0.3, start_factor=1 / 20, end_factor=1 / 2000)
    assert found == pytest.approx(wanted)
