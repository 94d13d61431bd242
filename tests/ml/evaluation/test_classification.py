"""Metrics against scikit-learn, labels that never occur included."""

import numpy as np
import pytest

from ml.evaluation.classification import Ids, accuracy, f1_by_class, log_loss, macro_f1, per_label_report
from ml.evaluation.scores import softmax

CLASSES = 6


def answers(seed: int, rows: int = 50) -> tuple[Ids, Ids]:
    """Predicted and true ids. Class 4 is never predicted, class 5 neither predicted nor true."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4, rows), generator.integers(0, 5, rows)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    predicted, targets = answers(seed)
    assert accuracy(predicted, targets) == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert macro_f1(predicted, targets, CLASSES) == pytest.approx(
        metrics.f1_score(targets, predicted, average="macro", zero_division=0)
    )
    precision, recall, f1, rows = metrics.precision_recall_fscore_support(
        targets, predicted, labels=range(CLASSES), zero_division=0
    )
    np.testing.assert_allclose(f1_by_class(predicted, targets, CLASSES), f1)
    report = per_label_report(predicted, targets, [f"label {i}" for i in range(CLASSES)])
    for i in range(CLASSES):
        expected = {"precision": precision[i], "recall": recall[i], "f1": f1[i], "rows": rows[i]}
        assert report[f"label {i}"] == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1, 100])
def test_log_loss_equals_scikit_learn(scale: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    probabilities = softmax(generator.normal(size=(40, CLASSES)) * scale)
    targets = generator.integers(0, CLASSES, 40)
    kept = np.maximum(probabilities, 1e-15)
    expected = metrics.log_loss(targets, kept / kept.sum(-1, keepdims=True), labels=range(CLASSES))
    assert log_loss(probabilities, targets) == pytest.approx(expected, rel=1e-9)


def test_log_loss_stays_finite_for_a_label_that_was_ruled_out() -> None:
    assert log_loss(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-np.log(1e-15))


def test_one_row_is_enough() -> None:
    one, other = np.array([1]), np.array([0])
    assert (accuracy(one, one), macro_f1(one, one, 2)) == (1.0, 1.0)
    assert (accuracy(one, other), macro_f1(one, other, 2)) == (0.0, 0.0)
