"""Calibration against scikit-learn, and what fitting promises: never worse on the rows it was fitted on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from ml.evaluation import calibration
from ml.evaluation.calibration import Array, Ids, Scores
from ml.evaluation.scores import sigmoid, softmax
from ml.tasks.readings import LABEL_READINGS


def calibrated(rows: int, classes: int = 4, seed: int = 0) -> tuple[Array, Ids]:
    """Logits (N, C), and classes (N,) drawn from their very softmax."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(rows, classes))
    uniform = generator.random((rows, 1))
    return logits, np.asarray((np.cumsum(softmax(logits), -1) < uniform).sum(-1)).clip(max=classes - 1)


def hinge_scores(rows: int, classes: int = 3, seed: int = 0) -> tuple[Array, Ids]:
    """Scores around ±3 that are no probabilities, and the true classes."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    return 3 * (2 * np.eye(classes)[truth] - 1) + 4 * generator.normal(size=(rows, classes)), truth


# ------------------------------------------------------------------------------------------------------------- measures


def test_loss_and_brier_equal_scikit_learn() -> None:
    logits, truth = calibrated(200)
    scores = softmax(logits)
    values = calibration.evaluate(scores, truth)
    assert values["loss"] == pytest.approx(metrics.log_loss(truth, scores, labels=range(4)))
    brier = metrics.brier_score_loss(truth, scores, labels=range(4), scale_by_half=False)
    assert values["brier"] == pytest.approx(brier)


def test_loss_stays_finite_for_a_label_that_was_ruled_out() -> None:
    values = calibration.evaluate(np.array([[1.0, 0.0]]), np.array([1]))
    assert values == pytest.approx({"loss": -np.log(1e-15), "ece": 1.0, "brier": 2.0})


def test_ece_equals_a_slow_loop_over_the_bins() -> None:
    logits, truth = calibrated(500)
    scores = softmax(2 * logits)
    confidence, hit = scores.max(-1), scores.argmax(-1) == truth
    expected = 0.0
    for i in range(15):
        rows = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if rows.any():
            expected += rows.mean() * abs(confidence[rows].mean() - hit[rows].mean())
    assert calibration.evaluate(scores, truth)["ece"] == pytest.approx(expected)


def test_a_calibrated_set_has_almost_no_calibration_error_and_a_sharpened_one_has() -> None:
    logits, truth = calibrated(100_000)
    assert calibration.evaluate(softmax(logits), truth)["ece"] < 0.01
    assert calibration.evaluate(softmax(3 * logits), truth)["ece"] > 0.1


def test_reliability_bins_hold_every_row_once() -> None:
    logits, truth = calibrated(300)
    scores = softmax(logits)
    bins = calibration.reliability_bins(scores, truth)
    assert sum(one["rows"] for one in bins) == 300
    assert all(one["lower"] < one["confidence"] <= one["upper"] for one in bins)
    assert all(one["rows"] > 0 for one in bins)
    accuracy = sum(one["rows"] * one["accuracy"] for one in bins) / 300
    assert accuracy == pytest.approx((scores.argmax(-1) == truth).mean())
    ece = sum(one["rows"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / 300
    assert ece == pytest.approx(calibration.evaluate(scores, truth)["ece"])


def test_certain_rows_stand_in_the_last_bin() -> None:
    (last,) = calibration.reliability_bins(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    assert last == pytest.approx({"lower": 14 / 15, "upper": 1, "rows": 2, "confidence": 1, "accuracy": 0.5})


def test_binary_log_loss_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    scores, targets = sigmoid(generator.normal(size=(50, 3))), generator.integers(0, 2, (50, 3))
    expected = metrics.log_loss(targets.ravel(), scores.ravel())
    assert calibration.binary_log_loss(scores, targets) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("sharpened", [0.3, 1.0, 4.0])
def test_the_fitted_temperature_undoes_a_sharpening(sharpened: float) -> None:
    logits, truth = calibrated(20_000)
    assert calibration.fit_temperature(logits * sharpened, truth, softmax) == pytest.approx(sharpened, rel=0.05)


@pytest.mark.parametrize("rows", [10, 300])
def test_the_fitted_temperature_equals_a_search_over_a_grid(rows: int) -> None:
    logits, truth = calibrated(rows, seed=3)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2_001))
    losses = [calibration.log_loss(softmax(logits / t), truth) + np.log(t) ** 2 / (2 * rows) for t in grid]
    assert calibration.fit_temperature(logits, truth, softmax) == pytest.approx(grid[np.argmin(losses)], rel=0.01)


def test_few_rows_that_are_all_right_do_not_make_scores_certain() -> None:
    outputs = 3 * np.eye(3)
    few, many = (
        softmax(
            outputs / calibration.fit_temperature(np.tile(outputs, (times, 1)), np.tile(np.arange(3), times), softmax)
        )
        for times in (1, 1000)
    )
    assert softmax(outputs)[0, 0] < few[0, 0] < 0.99 < 0.999 < many[0, 0]
    binary = calibration.fit_binary_temperature(outputs - 1.5, np.eye(3))
    assert binary < 1 and sigmoid(outputs[0] / binary - 1.5 / binary)[0] < 0.99


@pytest.mark.parametrize("kind", ["softmax", "sigmoid_pair", "cumulative", "conditional"])
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 30), scale=st.sampled_from([0.01, 1.0, 30.0, 3000.0]))
def test_a_temperature_never_raises_the_loss_of_its_own_rows(kind: str, seed: int, rows: int, scale: float) -> None:
    classes = 2 if kind == "sigmoid_pair" else 4
    reading = LABEL_READINGS[kind](classes)
    generator = np.random.default_rng(seed)
    outputs = (scale * generator.normal(size=(rows, reading.width))).astype(np.float32)
    truth = generator.integers(0, classes, rows)
    temperature = calibration.fit_temperature(outputs, truth, reading.scores)
    assert 0.05 <= temperature <= 20
    after = calibration.log_loss(reading.scores(outputs / temperature), truth)
    assert after <= calibration.log_loss(reading.scores(outputs), truth)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 20))
def test_a_temperature_leaves_the_arg_max_where_it_was(seed: int, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(50, 5)).astype(np.float32)
    assert (softmax(logits / temperature).argmax(-1) == logits.argmax(-1)).all()


def test_the_temperature_is_one_where_none_lowers_the_loss() -> None:
    equal = np.zeros((10, 3))
    assert calibration.fit_temperature(equal, np.arange(10) % 3, softmax) == 1.0
    assert calibration.fit_binary_temperature(equal, np.ones((10, 3))) == 1.0


@pytest.mark.parametrize("sharpened", [0.3, 4.0])
def test_the_binary_temperature_undoes_a_sharpening_and_lowers_the_loss(sharpened: float) -> None:
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(5000, 4))
    targets = (generator.random(logits.shape) < sigmoid(logits)).astype(np.float32)
    outputs = logits * sharpened
    temperature = calibration.fit_binary_temperature(outputs, targets)
    assert temperature == pytest.approx(sharpened, rel=0.05)
    after = calibration.binary_log_loss(sigmoid(outputs / temperature), targets)
    assert after < calibration.binary_log_loss(sigmoid(outputs), targets)


# ---------------------------------------------------------------------------------------------------------------- platt


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_platt_equals_scikit_learns_logistic_regression_on_smoothed_targets(scale: float) -> None:
    raw, truth = hinge_scores(80)
    fitted = calibration.fit_platt(scale * raw, truth)
    for c, (a, b) in enumerate(fitted):
        positives, rows = (truth == c).sum(), len(truth)
        smoothed = np.where(truth == c, (positives + 1) / (positives + 2), 1 / (rows - positives + 2))
        # A row whose target is t is a row of 1 that weighs t and a row of 0 that weighs 1 − t.
        model = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
            np.tile(raw[:, c], 2)[:, None], np.repeat([1, 0], rows), np.concatenate([smoothed, 1 - smoothed])
        )
        assert a * scale == pytest.approx(model.coef_[0, 0], rel=1e-3)
        assert b == pytest.approx(model.intercept_[0], rel=1e-3, abs=1e-3)


def test_platt_makes_probabilities_of_hinge_scores() -> None:
    raw, truth = hinge_scores(20_000)
    a, b = np.array(calibration.fit_platt(raw, truth)).T
    likely = sigmoid(raw * a + b)
    for c in range(3):
        assert calibration.calibration_error(likely[:, c], truth == c) < 0.02
        assert calibration.calibration_error(sigmoid(raw[:, c]), truth == c) > 0.05


def test_platt_stays_finite_where_a_score_separates_the_classes() -> None:
    truth = np.array([0, 0, 1, 1])
    for a, b in calibration.fit_platt(100 * (2 * np.eye(2)[truth] - 1), truth):
        assert 0 < a < 1
        assert math.isfinite(b)


def test_platt_turns_a_score_that_points_the_wrong_way() -> None:
    raw, truth = hinge_scores(500)
    assert all(a < 0 for a, _ in calibration.fit_platt(-raw, truth))


def test_a_score_that_says_nothing_gets_the_share_of_its_class() -> None:
    (a, b), _ = calibration.fit_platt(np.full((10, 2), 0.1), np.array([0] * 7 + [1] * 3))
    share = (7 * 8 / 9 + 3 * 1 / 5) / 10  # the mean of Platt's smoothed targets
    assert sigmoid(np.array(0.1 * a + b)) == pytest.approx(share, abs=1e-4)


def test_a_class_that_no_row_or_every_row_has_keeps_its_scores() -> None:
    raw = np.random.default_rng(0).normal(size=(5, 3))
    assert calibration.fit_platt(raw, np.full(5, 1)) == ((1.0, 0.0),) * 3


def test_platt_by_label_is_platt_for_each_label_alone() -> None:
    generator = np.random.default_rng(0)
    raw = generator.normal(size=(60, 3))
    targets = (generator.random((60, 3)) < 0.4).astype(np.float32)
    fitted = calibration.fit_platt_by_label(raw, targets)
    for label in range(3):
        alone = calibration.fit_platt(raw[:, [label, label]], targets[:, label].astype(np.int64))[1]
        assert fitted[label] == pytest.approx(alone)


NO_IDS, NO_SCORES = np.zeros(0, np.int64), np.zeros((0, 2))


@pytest.mark.parametrize(
    "measure",
    [
        lambda: calibration.evaluate(NO_SCORES, NO_IDS),
        lambda: calibration.reliability_bins(NO_SCORES, NO_IDS),
        lambda: calibration.fit_temperature(NO_SCORES, NO_IDS, softmax),
        lambda: calibration.fit_binary_temperature(NO_SCORES, NO_SCORES),
        lambda: calibration.fit_platt(NO_SCORES, NO_IDS),
        lambda: calibration.fit_platt_by_label(NO_SCORES, NO_SCORES),
    ],
)
def test_no_rows_are_refused_by_name(measure: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="truth has no rows"):
        measure()


def test_measures_leave_their_input_as_it_was() -> None:
    logits, truth = calibrated(20)
    scores: Scores = softmax(logits)
    before = scores.copy()
    calibration.evaluate(scores, truth)
    np.testing.assert_array_equal(scores, before)
