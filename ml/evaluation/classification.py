"""Metrics of single-label classification. predicted and truth are class ids (N,); C classes, N at least 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import ranking
from ml.evaluation.rows import require_rows

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]

# A larger matrix is no picture any more, and megabytes of JSON.
MAX_CONFUSION_LABELS = 200


def evaluate(predicted: Ids, scores: Scores, truth: Ids) -> dict[str, float]:
    """Those of the answers, and roc_auc and average_precision of scores (N, C).

    The last two are means over the classes in truth, each against the rest. Where truth holds one class only, they are
    undefined and left out.
    """
    return evaluate_answers(predicted, truth) | ranking.evaluate(scores, truth[:, None] == np.arange(scores.shape[1]))


def evaluate_answers(predicted: Ids, truth: Ids) -> dict[str, float]:
    """accuracy, macro_f1, micro_f1 and mcc.

    macro_f1 is the mean over the classes that occur in predicted or truth. mcc is undefined and left out where truth
    holds one class only, and 0 where predicted does.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    require_rows(truth, "measuring classification")
    metrics = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
    }
    if (truth != truth[0]).any():
        metrics["mcc"] = float(matthews_corrcoef(truth, predicted))
    return metrics


def report(predicted: Ids, truth: Ids, labels: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and rows by label name, and the confusion matrix: rows are truth, columns predicted.

    A precision or recall of nothing is 0. Above 200 labels "confusion" is None.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    require_rows(truth, "a report")
    ids = range(len(labels))
    figures = precision_recall_fscore_support(truth, predicted, labels=ids, zero_division=0)
    confusion = None
    if len(labels) <= MAX_CONFUSION_LABELS:
        matrix = confusion_matrix(truth, predicted, labels=ids)  # (C, C)
        confusion = {"labels": list(labels), "matrix": matrix.tolist()}
    return {"labels": name_figures(labels, *figures), "confusion": confusion}


def name_figures(
    labels: Sequence[str], precision: Scores, recall: Scores, f1: Scores, rows: Ids
) -> dict[str, dict[str, float]]:
    """Four arrays (C,) as one object for each label name."""
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in zip(labels, precision, recall, f1, rows, strict=True)
    }
