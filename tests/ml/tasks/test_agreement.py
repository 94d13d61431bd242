"""When int8 may be served in the place of float32: few answers change, scores hardly move, the metric hardly falls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ml.tasks.agreement import Agreement, HeldOut, compare, score_moves
from ml.tasks.base import Task
from ml.tasks.multi_label import MultiLabelTask
from ml.tasks.readings import PlainScores, Sigmoid, Softmax, ValueReading
from ml.tasks.regression import RegressionTask
from ml.tasks.text_classification import TextClassificationTask

LABELS = ("a", "b")
ONE_LABEL = TextClassificationTask(LABELS, Softmax(2))
NONE_HELD_OUT = HeldOut(np.zeros(0, np.int64), np.zeros(0, np.int64))


def outputs(probabilities: Sequence[float]) -> np.ndarray:
    """Logits of two labels, the second of these probabilities."""
    p = np.array(probabilities)
    return np.log(np.stack([1 - p, p], -1)).astype(np.float32)


def agreement(**changes: Any) -> Agreement:
    """At every limit."""
    at_limits: dict[str, Any] = {
        "texts": 1000,
        "changed": 0.02,
        "moved": 0.01,
        "labelled": 500,
        "metric": "macro_f1",
        "fall": 0.005,
    }
    return Agreement(**{**at_limits, **changes})


def test_what_stays_within_every_limit_is_served() -> None:
    assert agreement().objection() is None
    assert agreement(fall=None).objection() is None
    assert agreement(fall=-0.1).objection() is None


@pytest.mark.parametrize(
    ("past", "says"),
    [
        ({"changed": 0.021}, "2.1% of 1000 answers changed, and at most 2% may"),
        ({"moved": 0.0101}, "scores moved by 0.0101"),
        ({"moved": float("nan")}, "scores moved by nan"),
        ({"fall": 0.0051}, "macro_f1 fell by 0.0051 on 500 rows"),
    ],
)
def test_what_is_past_one_limit_is_not_and_says_which(past: dict[str, float], says: str) -> None:
    assert says in (agreement(**past).objection() or "")


def test_a_changed_label_and_the_mean_move_of_probabilities_are_counted() -> None:
    first, second = outputs([0.9, 0.1, 0.51, 0.3]), outputs([0.9, 0.1, 0.49, 0.34])
    found = compare(ONE_LABEL, "text_classification", first, second, NONE_HELD_OUT)
    assert (found.texts, found.changed) == (4, 0.25)
    assert found.moved == pytest.approx((0.02 + 0.04) / 4, abs=1e-6)


def test_the_metric_is_compared_on_held_out_rows_where_there_are_five_hundred() -> None:
    chance = np.random.default_rng(0)
    p = chance.uniform(0.01, 0.99, 600)
    second = p.copy()
    second[50:60] = 1 - p[50:60]
    targets = (p[50:] > 0.5).astype(np.int64)  # of which the first file misses none
    rows = np.arange(50, 600)
    found = compare(ONE_LABEL, "text_classification", outputs(p), outputs(second), HeldOut(rows, targets))
    assert (found.labelled, found.metric) == (550, "macro_f1")
    assert found.fall == pytest.approx(10 / 550, rel=0.05)
    fewer = HeldOut(rows[:499], targets[:499])
    assert compare(ONE_LABEL, "text_classification", outputs(p), outputs(second), fewer).fall is None


def test_of_several_labels_any_one_that_comes_or_goes_is_a_changed_answer() -> None:
    task = MultiLabelTask(("a", "b", "c"), Sigmoid(3), thresholds=(0.5, 0.5, 0.9))
    first = np.array([[1, -1, 1], [1, -1, 1], [1, -1, 1]], np.float32)
    second = np.array([[1, 1, 1], [1, -1, 1], [2, -2, 1.5]], np.float32)  # σ(1.5) is below 0.9
    assert compare(task, "multi_label", first, second, NONE_HELD_OUT).changed == pytest.approx(1 / 3)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_a_number_has_changed_when_it_moves_by_a_tenth_of_a_deviation_whatever_its_unit(unit: float) -> None:
    task = RegressionTask(ValueReading("value"), shift=5 * unit, scale=unit)
    first = np.array([[-1.0], [1.0], [-1.0], [1.0]], np.float32)  # of deviation 1
    second = first + np.array([[0.0], [0.09], [0.11], [0.0]], np.float32)
    found = compare(task, "regression", first, second, NONE_HELD_OUT)
    assert found.changed == 0.25
    assert found.moved == pytest.approx(0.05, abs=1e-6)


def test_scores_that_are_no_probabilities_move_in_deviations() -> None:
    task: Task = TextClassificationTask(LABELS, PlainScores(2))
    first = np.array([[-30.0, 30.0], [30.0, -30.0]])
    assert score_moves(task, first, first + 3) == pytest.approx([0.1, 0.1])
