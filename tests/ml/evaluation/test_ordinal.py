"""Metrics of levels against their formulas."""

import math

import numpy as np
import pytest

from ml.evaluation.ordinal import Levels, evaluate


def slow_kappa(levels: Levels, truth: Levels, classes: int) -> float:
    """1 − Σ w·O / Σ w·E with w = (i − j)², by loops."""
    rows = len(truth)
    observed = expected = 0.0
    for i in range(classes):
        for j in range(classes):
            weight = (i - j) ** 2
            observed += weight * ((truth == i) & (levels == j)).mean()
            expected += weight * (truth == i).sum() * (levels == j).sum() / rows**2
    return 1 - observed / expected


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_their_formulas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 5, 60)  # of seven levels, the last two never occur
    levels = np.clip(truth + generator.integers(-1, 2, 60), 0, 6)
    values = evaluate(levels, truth, 7)
    assert values["mae"] == pytest.approx(np.abs(levels - truth).mean())
    assert values["rmse"] == pytest.approx(np.sqrt(((levels - truth) ** 2).mean()))
    assert values["qwk"] == pytest.approx(slow_kappa(levels, truth, 7))
    mean_ranks = [np.array([(one < x).sum() + (one == x).sum() / 2 for x in one]) for one in (levels, truth)]
    assert values["spearman"] == pytest.approx(np.corrcoef(*mean_ranks)[0, 1])


def test_a_far_answer_is_worse_than_a_near_one() -> None:
    truth = np.array([0, 1, 2, 3])
    near, far = evaluate(np.array([1, 1, 2, 3]), truth, 4), evaluate(np.array([3, 1, 2, 3]), truth, 4)
    assert near["mae"] < far["mae"]
    assert near["qwk"] > far["qwk"]


def test_right_answers_are_perfect() -> None:
    levels = np.array([0, 1, 2, 2])
    assert evaluate(levels, levels, 3) == pytest.approx({"mae": 0, "rmse": 0, "qwk": 1, "spearman": 1})


def test_what_one_level_leaves_undefined_is_left_out() -> None:
    one, other = np.array([1, 1]), np.array([0, 0])
    assert evaluate(one, one, 3) == {"mae": 0, "rmse": 0}
    assert evaluate(other, one, 3) == pytest.approx({"mae": 1, "rmse": 1, "qwk": 0})
    assert evaluate(np.array([1, 2]), one, 3).keys() == {"mae", "rmse", "qwk"}


def test_every_value_is_a_finite_python_float() -> None:
    values = evaluate(np.array([0, 2, 1]), np.array([0, 1, 1]), 3)
    assert len(values) == 4
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


def test_no_rows_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="truth has no rows"):
        evaluate(np.zeros(0, np.int64), np.zeros(0, np.int64), 3)
