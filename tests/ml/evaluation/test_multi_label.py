"""Multi-label metrics against scikit-learn, and thresholds against a search over every cut."""

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from ml.evaluation import multi_label
from ml.evaluation.multi_label import Scores, Targets
from ml.evaluation.scores import sigmoid

LABELS = ["a", "b", "c", "never", "always"]


def answers(rows: int = 80, seed: int = 0) -> tuple[Scores, Targets]:
    """Scores and targets (N, 5); no row has the fourth label, every row has the fifth."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((rows, 5)) < 0.4).astype(np.float32)
    targets[:, 3], targets[:, 4] = 0, 1
    return sigmoid(generator.normal(size=(rows, 5)) + 2 * targets - 1), targets


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn(seed: int) -> None:
    scores, targets = answers(seed=seed)
    thresholds = np.array([0.3, 0.5, 0.7, 0.5, 0.5])
    given = scores >= thresholds
    values = multi_label.evaluate(scores, targets, thresholds)
    for average in ("macro", "micro"):
        expected = metrics.f1_score(targets, given, average=average, zero_division=0)
        assert values[f"{average}_f1"] == pytest.approx(expected)
    assert values["exact_match"] == pytest.approx(metrics.accuracy_score(targets, given))
    assert values["hamming_loss"] == pytest.approx(metrics.hamming_loss(targets, given))
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(targets[:, :3], scores[:, :3]))
    expected = metrics.average_precision_score(targets[:, :3], scores[:, :3])
    assert values["average_precision"] == pytest.approx(expected)
    assert values["loss"] == pytest.approx(metrics.log_loss(targets.ravel(), scores.ravel()))
    assert values["brier"] == pytest.approx(metrics.brier_score_loss(targets.ravel(), scores.ravel()))


def test_scores_that_are_true_shares_have_almost_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((50_000, 2))
    targets = generator.random((50_000, 2)) < scores
    half = np.full(2, 0.5)
    assert multi_label.evaluate(scores, targets, half)["ece"] < 0.01
    assert multi_label.evaluate(scores**3, targets, half)["ece"] > 0.1


def test_a_label_neither_given_nor_there_counts_as_zero() -> None:
    one = np.array([[True, False]])
    assert multi_label.macro_f1(one, one.astype(np.float32)) == 0.5


def test_a_single_label_is_a_label_and_not_two_classes() -> None:
    there, given = np.array([[1], [1], [0], [0], [0]]), np.array([[True], [False], [False], [False], [False]])
    values = multi_label.evaluate(given.astype(np.float64), there, np.array([0.5]))
    assert values["macro_f1"] == values["micro_f1"] == pytest.approx(2 / 3)
    assert values["roc_auc"] == pytest.approx(0.75)
    assert multi_label.report(given, there, ["only"])["labels"]["only"] == pytest.approx(
        {"precision": 1, "recall": 0.5, "f1": 2 / 3, "rows": 2}
    )


def test_ranking_is_left_out_without_a_label_that_some_rows_have_and_some_have_not() -> None:
    values = multi_label.evaluate(np.array([[0.9, 0.2]]), np.array([[1, 0]]), np.full(2, 0.5))
    assert values.keys() == {"macro_f1", "micro_f1", "exact_match", "hamming_loss", "loss", "ece", "brier"}


@pytest.mark.parametrize("extreme", [False, True])
def test_every_value_is_a_finite_python_float(extreme: bool) -> None:
    scores, targets = answers()
    values = multi_label.evaluate(1 - targets.astype(np.float64) if extreme else scores, targets, np.full(5, 0.5))
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


def test_the_report_equals_scikit_learn_for_every_label() -> None:
    scores, targets = answers()
    given = scores >= 0.5
    figures = multi_label.report(given, targets, LABELS)["labels"]
    assert list(figures) == LABELS
    for i, label in enumerate(LABELS):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            targets[:, i], given[:, i], pos_label=1, average="binary", zero_division=0
        )
        expected = {"precision": precision, "recall": recall, "f1": f1, "rows": targets[:, i].sum()}
        assert figures[label] == pytest.approx(expected)


# ----------------------------------------------------------------------------------------------------------- thresholds


def f1(scores: Scores, there: Targets, threshold: float) -> float:
    return float(metrics.f1_score(there, scores >= threshold, zero_division=0))


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.500001, 0.9, 1.0]) | st.floats(0, 1), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_no_threshold_has_a_better_f1_than_the_fitted_one(rows: list[tuple[float, bool]]) -> None:
    scores, there = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    (threshold,) = multi_label.fit_thresholds(scores[:, None], there[:, None])
    best = max(f1(scores, there, cut) for cut in (*scores, 0.5, 2.0))
    assert 0 <= threshold <= 1
    assert f1(scores, there, threshold) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_fitted_thresholds_are_at_least_as_good_as_one_half(seed: int) -> None:
    scores, targets = answers(seed=seed)
    fitted = multi_label.macro_f1(scores >= np.array(multi_label.fit_thresholds(scores, targets)), targets)
    assert fitted >= multi_label.macro_f1(scores >= 0.5, targets)


def test_a_threshold_stands_halfway_between_its_neighbours() -> None:
    scores = np.array([[0.1], [0.2], [0.3], [0.4]])
    assert multi_label.fit_thresholds(scores, np.array([[0], [0], [1], [1]])) == pytest.approx((0.25,))
    assert multi_label.fit_thresholds(scores, np.ones((4, 1))) == pytest.approx((0.05,))


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_chosen() -> None:
    # Giving the top row alone has the same F1, two thirds, as giving every row.
    scores, there = np.array([[0.2], [0.6], [0.8], [0.9]]), np.array([[1], [0], [0], [1]])
    assert f1(scores[:, 0], there[:, 0], 0.1) == f1(scores[:, 0], there[:, 0], 0.85)
    assert multi_label.fit_thresholds(scores, there) == pytest.approx((0.85,))


def test_a_label_that_no_row_has_keeps_one_half() -> None:
    assert multi_label.fit_thresholds(np.array([[0.9, 0.9]]), np.array([[0, 1]])) == pytest.approx((0.5, 0.45))


def test_neighbouring_floats_are_told_apart() -> None:
    low = 0.3
    scores = np.array([[low], [np.nextafter(low, 1)]])
    (threshold,) = multi_label.fit_thresholds(scores, np.array([[0], [1]]))
    assert (scores[:, 0] >= threshold).tolist() == [False, True]


def test_many_rows_take_no_loop_over_thresholds() -> None:
    generator = np.random.default_rng(0)
    scores, targets = generator.random((100_000, 10)), generator.random((100_000, 10)) < 0.2
    started = time.perf_counter()
    multi_label.fit_thresholds(scores, targets)
    assert time.perf_counter() - started < 5  # a tenth of a second or so; a loop takes hours


@pytest.mark.parametrize(
    "measure",
    [
        lambda none: multi_label.evaluate(none, none, np.full(2, 0.5)),
        lambda none: multi_label.macro_f1(none > 0, none),
        lambda none: multi_label.report(none > 0, none, ["a", "b"]),
        lambda none: multi_label.fit_thresholds(none, none),
    ],
)
def test_no_rows_are_refused_by_name(measure: Callable[[Scores], object]) -> None:
    with pytest.raises(ValueError, match="truth has no rows"):
        measure(np.zeros((0, 2)))
