"""Metrics against scikit-learn and slow loops, labels that never occur included."""

import math

import numpy as np
import pytest
from sklearn import metrics

from ml.evaluation.classification import Ids, Scores, evaluate, report
from ml.evaluation.scores import softmax

CLASSES = 6
LABELS = [f"label {i}" for i in range(CLASSES)]


def answers(seed: int, rows: int = 60) -> tuple[Ids, Scores, Ids]:
    """predicted, scores, truth. Class 4 is never predicted, class 5 neither predicted nor true."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 5, rows)
    logits = generator.normal(size=(rows, CLASSES)) + 1.5 * np.eye(CLASSES)[truth]
    logits[:, 4:] -= 20
    scores = softmax(logits)
    return scores.argmax(-1), scores, truth


@pytest.mark.parametrize("seed", range(5))
def test_labels_found_equal_scikit_learn(seed: int) -> None:
    predicted, scores, truth = answers(seed)
    values = evaluate(predicted, scores, truth)
    assert values["accuracy"] == pytest.approx((predicted == truth).mean())
    assert values["micro_f1"] == pytest.approx(values["accuracy"])
    assert values["mcc"] == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
    expected = metrics.f1_score(truth, predicted, labels=range(5), average="macro", zero_division=0)
    assert values["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_is_the_mean_over_the_classes_in_truth_each_against_the_rest(seed: int) -> None:
    predicted, scores, truth = answers(seed)
    values = evaluate(predicted, scores, truth)
    areas, precisions = [], []
    for c in np.unique(truth):
        positive, negative = scores[truth == c, c], scores[truth != c, c]
        # The chance that a positive outranks a negative, a tie being half.
        wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
        areas.append(wins)
        at_or_above = [scores[:, c] >= score for score in positive]
        precisions.append(np.mean([(truth[rows] == c).mean() for rows in at_or_above]))
    assert len(areas) == 5
    assert values["roc_auc"] == pytest.approx(np.mean(areas))
    assert values["average_precision"] == pytest.approx(np.mean(precisions))


def test_scores_need_not_be_probabilities() -> None:
    predicted, scores, truth = answers(0)
    raw = 7 * np.log(scores) - 3
    values, expected = evaluate(predicted, raw, truth), evaluate(predicted, scores, truth)
    assert values == pytest.approx(expected)


def test_what_one_class_leaves_undefined_is_left_out() -> None:
    truth = np.array([1, 1, 1])
    values = evaluate(np.array([1, 1, 0]), softmax(np.zeros((3, 2))), truth)
    assert values.keys() == {"accuracy", "macro_f1", "micro_f1"}
    assert values["macro_f1"] == pytest.approx(0.4)


def test_one_answer_for_all_rows_correlates_with_nothing() -> None:
    values = evaluate(np.array([1, 1, 1]), softmax(np.zeros((3, 2))), np.array([0, 1, 1]))
    assert values["mcc"] == 0
    assert values["roc_auc"] == 0.5


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_every_value_is_a_finite_python_float(rows: int) -> None:
    values = evaluate(*answers(0, rows))
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


def test_the_report_equals_scikit_learn_for_every_label() -> None:
    predicted, _, truth = answers(1)
    figures = report(predicted, truth, LABELS)["labels"]
    assert list(figures) == LABELS
    for i, label in enumerate(LABELS):
        found, there = predicted == i, truth == i
        assert figures[label] == pytest.approx(
            {
                "precision": metrics.precision_score(there, found, zero_division=0),
                "recall": metrics.recall_score(there, found, zero_division=0),
                "f1": metrics.f1_score(there, found, zero_division=0),
                "rows": there.sum(),
            }
        )


def test_the_confusion_counts_truth_by_row_and_answers_by_column() -> None:
    confusion = report(np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1]), ["no", "yes", "maybe"])["confusion"]
    assert confusion == {"labels": ["no", "yes", "maybe"], "matrix": [[1, 2, 0], [0, 1, 0], [0, 0, 0]]}


def test_the_confusion_stops_at_two_hundred_labels() -> None:
    ids = np.arange(4)
    assert len(report(ids, ids, [str(i) for i in range(200)])["confusion"]["matrix"]) == 200
    many = report(ids, ids, [str(i) for i in range(201)])
    assert many["confusion"] is None
    assert len(many["labels"]) == 201


def test_no_rows_are_refused_by_name() -> None:
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="truth has no rows"):
        evaluate(nothing, np.zeros((0, 2)), nothing)
    with pytest.raises(ValueError, match="truth has no rows"):
        report(nothing, nothing, ["a", "b"])
