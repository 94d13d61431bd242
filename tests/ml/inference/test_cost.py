"""The cost of a pass is found from a few measurements, and survives noisy ones."""

import numpy as np
import pytest

from ml.inference.cost import PassCost, fit_cost, measure_cost

SHAPES = [(1, 3), (1, 20), (8, 20), (1, 180)]


def took(cost: PassCost) -> np.ndarray:
    return np.array([cost.seconds(*shape) for shape in SHAPES])


def test_the_cost_that_was_measured_is_found() -> None:
    cost = PassCost(fixed=0.001, token=0.0001, square=1e-7)
    found = fit_cost(SHAPES, took(cost))
    for shape in [*SHAPES, (16, 25), (4, 128), (2, 300)]:
        assert found.seconds(*shape) == pytest.approx(cost.seconds(*shape), rel=1e-6)


def test_noise_makes_no_term_negative_and_the_fixed_one_never_zero() -> None:
    chance = np.random.default_rng(1)
    for _ in range(200):
        seconds = took(PassCost(0.001, 0.0001, 1e-7)) * chance.lognormal(0, 1.5, len(SHAPES))
        found = fit_cost(SHAPES, seconds)
        assert found.fixed > 0
        assert min(found.token, found.square) >= 0
        assert found.seconds(9, 60) >= found.seconds(8, 60) >= found.seconds(8, 50)


def test_rows_that_are_all_of_one_length_can_be_measured() -> None:
    found = fit_cost([(1, 4), (1, 4), (8, 4), (1, 4)], np.array([0.001, 0.001, 0.004, 0.001]))
    assert found.seconds(1, 4) == pytest.approx(0.001, rel=0.1)
    assert found.seconds(8, 4) == pytest.approx(0.004, rel=0.1)


def test_a_few_passes_of_different_shapes_are_timed() -> None:
    passes: list[tuple[int, int]] = []
    cost = measure_cost(lambda rows: passes.append((len(rows), len(rows[0]))), ["a" * 18, "a" * 90, "aaa"])
    assert set(passes) == {(1, 3), (1, 18), (8, 18), (1, 90)}
    assert cost.fixed > 0
