"""How outputs are read: probabilities where a reading promises them, and the answer that it gives."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.evaluation.scores import softmax
from ml.specs.losses.base import Reading
from ml.tasks.readings import LABEL_READINGS, Array, LabelReading, ValueReading, label_reading

VALUE_READINGS = ("value", "log_rate", "normal", "quantiles")
SINGLE = ("softmax", "scores", "sigmoid_pair", "score_pair", "cumulative", "conditional", "rank")
PAIRS = ("sigmoid_pair", "score_pair")


def reading_of(kind: str) -> LabelReading:
    return LABEL_READINGS[kind](2 if kind in PAIRS else 4)


def outputs_for(reading: LabelReading, rows: int = 40, seed: int = 0, scale: float = 3.0) -> Array:
    return (scale * np.random.default_rng(seed).normal(size=(rows, reading.width))).astype(np.float32)


def test_there_is_a_reading_for_every_name_a_loss_may_give() -> None:
    assert {*LABEL_READINGS, *VALUE_READINGS} == set(get_args(Reading))


@pytest.mark.parametrize(
    ("kind", "labels", "width"),
    [
        *(("softmax", 4, 4), ("scores", 4, 4), ("sigmoid_pair", 2, 1), ("score_pair", 2, 1), ("sigmoid", 4, 4)),
        *(("multi_scores", 4, 4), ("cumulative", 4, 3), ("conditional", 4, 3), ("rank", 4, 1)),
    ],
)
def test_the_reading_fixes_the_width_of_the_head(kind: str, labels: int, width: int) -> None:
    reading = label_reading(kind, [str(i) for i in range(labels)])
    assert reading.width == width
    outputs = outputs_for(reading)
    assert reading.scores(outputs).shape == reading.raw(outputs).shape == (40, labels)
    assert reading.scores(outputs).dtype == np.float64


@pytest.mark.parametrize("kind", SINGLE)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1.0, 50.0, 1e30]))
def test_probabilities_are_at_least_zero_and_sum_to_one(kind: str, seed: int, scale: float) -> None:
    reading = reading_of(kind)
    scores = reading.scores(outputs_for(reading, 5, seed, scale))
    assert np.isfinite(scores).all()
    assert np.isfinite(reading.raw(outputs_for(reading, 5, seed, scale))).all()
    if reading.has_probabilities:
        assert (scores >= 0).all()
        np.testing.assert_allclose(scores.sum(-1), 1)


@pytest.mark.parametrize("kind", ["softmax", "scores", "sigmoid_pair", "score_pair", "rank"])
def test_the_answer_is_the_label_with_the_highest_score(kind: str) -> None:
    reading = reading_of(kind)
    scores = reading.scores(outputs_for(reading))
    np.testing.assert_array_equal(reading.best(scores), scores.argmax(-1))


def test_softmax_is_softmax_and_scores_are_left_alone() -> None:
    outputs = np.array([[1.0, 2.0, 0.5]], np.float32)
    np.testing.assert_array_equal(LABEL_READINGS["softmax"](3).scores(outputs), softmax(outputs))
    np.testing.assert_array_equal(LABEL_READINGS["scores"](3).scores(outputs), outputs)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_is_told_apart_by_the_sign_of_one_output(kind: str) -> None:
    reading = reading_of(kind)
    scores = reading.scores(np.array([[-2.0], [3.0]]))
    assert reading.best(scores).tolist() == [0, 1]
    np.testing.assert_allclose(reading.raw(np.array([[2.0]])), [[-2, 2]])


def test_a_sigmoid_pair_is_a_softmax_over_zero_and_the_logit() -> None:
    outputs = outputs_for(reading_of("sigmoid_pair"))
    expected = softmax(np.concatenate([0 * outputs, outputs], -1))
    np.testing.assert_allclose(reading_of("sigmoid_pair").scores(outputs), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "multi_scores"])
def test_a_label_by_itself_passes_one_half_where_its_output_passes_zero(kind: str) -> None:
    outputs = np.array([[-0.1, 0.0, 0.1, 9.0]])
    assert (reading_of(kind).scores(outputs) >= 0.5).tolist() == [[False, True, True, True]]


def test_cumulative_levels_are_differences_of_passing_each_threshold() -> None:
    passed = np.array([[0.9, 0.6, 0.2]])
    reading = reading_of("cumulative")
    np.testing.assert_allclose(reading.scores(np.log(passed / (1 - passed))), [[0.1, 0.3, 0.4, 0.2]])


def test_conditional_levels_are_differences_of_running_products() -> None:
    passed = np.array([[0.9, 0.5, 0.2]])
    scores = reading_of("conditional").scores(np.log(passed / (1 - passed)))
    np.testing.assert_allclose(scores, [[0.1, 0.45, 0.36, 0.09]])


def test_cumulative_thresholds_that_cross_give_no_level_less_than_nothing() -> None:
    scores = reading_of("cumulative").scores(np.array([[-2.0, 5.0, 1.0]]))
    assert (scores >= 0).all()
    assert reading_of("cumulative").best(scores).tolist() == [0]


@pytest.mark.parametrize("kind", ["cumulative", "conditional"])
def test_the_answer_of_levels_is_the_median_and_not_the_likeliest(kind: str) -> None:
    reading = reading_of(kind)
    scores = np.array([[0.4, 0.05, 0.25, 0.3], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    assert reading.best(scores).tolist() == [2, 0, 3]


def test_the_raw_score_of_a_level_is_its_log_odds() -> None:
    reading = reading_of("cumulative")
    outputs = outputs_for(reading)
    raw = reading.raw(outputs)
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), reading.scores(outputs), rtol=1e-6, atol=1e-11)


def test_a_rank_is_rounded_to_the_nearest_level() -> None:
    reading = reading_of("rank")
    scores = reading.scores(np.array([[-5.0], [0.4], [1.6], [99.0]]))
    assert reading.best(scores).tolist() == [0, 0, 2, 3]
    np.testing.assert_allclose(scores[1], [-0.4, -0.6, -1.6, -2.6])


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("reading", "width"),
    [
        (ValueReading("value"), 1),
        (ValueReading("log_rate"), 1),
        (ValueReading("normal"), 2),
        (ValueReading("quantiles", (0.1, 0.5, 0.9)), 3),
    ],
)
def test_the_value_reading_fixes_the_width_of_the_head(reading: ValueReading, width: int) -> None:
    outputs = np.ones((4, width), np.float32)
    assert reading.width == width
    assert reading.values(outputs).shape == (4,)
    assert len(reading.details(outputs, 1.0, 0.0)) == 4


def test_a_value_is_the_output_and_a_log_rate_its_exponential() -> None:
    outputs = np.array([[0.0], [2.0]])
    np.testing.assert_allclose(ValueReading("value").values(outputs), [0, 2])
    np.testing.assert_allclose(ValueReading("log_rate").values(outputs), [1, np.exp(2)])
    assert ValueReading("value").details(outputs, 1.0, 0.0) == [{}, {}]


def test_a_log_rate_of_any_size_stays_finite() -> None:
    assert np.isfinite(ValueReading("log_rate").values(np.array([[1e9]]))).all()


def test_a_normal_gives_its_mean_and_a_deviation_in_the_targets_units() -> None:
    outputs = np.array([[1.5, np.log(4.0)]])
    reading = ValueReading("normal")
    np.testing.assert_allclose(reading.values(outputs), [1.5])
    assert reading.details(outputs, 10.0, 7.0) == [pytest.approx({"standard_deviation": 20.0})]


def test_quantiles_answer_the_one_nearest_to_the_median_and_all_in_order() -> None:
    reading = ValueReading("quantiles", (0.1, 0.6, 0.9))
    outputs = np.array([[-1.0, 0.5, 2.0], [3.0, 2.0, 1.0]])
    np.testing.assert_allclose(reading.values(outputs), [0.5, 2.0])
    first, crossed = reading.details(outputs, 2.0, 1.0)
    assert first["quantiles"] == pytest.approx({"0.1": -1, "0.6": 2, "0.9": 5})
    assert crossed["quantiles"] == pytest.approx({"0.1": 3, "0.6": 5, "0.9": 7})
