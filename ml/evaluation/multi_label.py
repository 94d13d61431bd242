"""Metrics and thresholds of labels of which a row may have several. N rows, L labels; a score stands in [0, 1]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import calibration, ranking
from ml.evaluation.classification import name_figures
from ml.evaluation.rows import require_rows

Scores = NDArray[np.float64]
Decisions = NDArray[np.bool_]
Targets = NDArray[Any]  # 0 and 1


def evaluate(scores: Scores, targets: Targets, thresholds: Scores) -> dict[str, float]:
    """Metrics of scores (N, L) against targets (N, L), given where a score reaches its threshold (L,).

    Those of the answers; roc_auc and average_precision over the labels that some rows have and some have not, left out
    without one; and over all N·L decisions loss (binary cross-entropy), ece (the score against the share of rows that
    have the label) and brier (squared error).
    """
    require_rows(targets, "measuring multi-label classification")
    there = targets > 0.5
    return {
        **evaluate_answers(scores >= thresholds, there),
        **ranking.evaluate(scores, there),
        "loss": calibration.binary_log_loss(scores, targets),
        "ece": calibration.calibration_error(scores.ravel(), there.ravel()),
        "brier": float(((scores - there) ** 2).mean()),
    }


def evaluate_answers(given: Decisions, there: Decisions) -> dict[str, float]:
    """macro_f1, micro_f1, exact_match (share of rows with every label right), hamming_loss (share of wrong decisions).

    Both are (N, L).
    """
    require_rows(there, "measuring multi-label classification")
    counts = _count(given, there)
    return {
        "macro_f1": _f1(*counts),
        "micro_f1": _f1(*counts.sum(1)),
        "exact_match": float((given == there).all(-1).mean()),
        "hamming_loss": float((given != there).mean()),
    }


def macro_f1(given: Decisions, targets: Targets) -> float:
    """Mean F1 over all L labels; one that is neither given nor there counts 0 (scikit-learn's zero_division=0)."""
    require_rows(targets, "macro F1")
    return _f1(*_count(given, targets > 0.5))


def report(given: Decisions, targets: Targets, labels: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and rows by label name; a precision or recall of nothing is 0."""
    from sklearn.metrics import precision_recall_fscore_support

    require_rows(targets, "a report")
    figures = precision_recall_fscore_support(
        _indicator(targets > 0.5), _indicator(given), labels=range(len(labels)), average=None, zero_division=0
    )
    return {"labels": name_figures(labels, *figures)}


def fit_thresholds(scores: Scores, targets: Targets) -> tuple[float, ...]:
    """The threshold of each label with the best F1 on scores (N, L), halfway between two neighbouring scores.

    Of equally good ones it is the nearest to one half, and one half for a label that no row has.
    """
    require_rows(targets, "fitting thresholds")
    return tuple(_best_threshold(*column) for column in zip(scores.T, targets.T > 0.5, strict=True))


def _best_threshold(scores: Scores, there: Decisions) -> float:
    """For one label: scores (N,), there (N,)."""
    if not there.any():
        return 0.5
    order = np.argsort(scores)
    ordered = scores[order].astype(np.float64)
    below = np.concatenate([[0.0], ordered[:-1]])  # a threshold i stands between below[i] and ordered[i]
    hits = np.cumsum(there[order][::-1])[::-1]  # (N,) rows from i on that have the label
    f1 = 2 * hits / (np.arange(len(scores), 0, -1) + hits[0])
    f1[1:][ordered[1:] == ordered[:-1]] = -1  # no threshold stands between equal scores
    halfway = below + (ordered - below) / 2
    thresholds = np.where(halfway > below, halfway, ordered)  # neighbouring floats have nothing between them
    best = np.flatnonzero(f1 == f1.max())
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - 0.5))]])


def _f1(hits: Any, given: Any, there: Any) -> float:
    """The mean of F1 over labels, or of all decisions together, from counts; one of nothing is 0."""
    return float(np.mean(2 * hits / np.maximum(given + there, 1)))


def _count(given: Decisions, there: Decisions) -> NDArray[np.int64]:
    """By label (3, L): decisions that are right and given, given, there."""
    return np.stack([(given & there).sum(0), given.sum(0), there.sum(0)])


def _indicator(decisions: Decisions) -> NDArray[np.int8]:
    """(N, L + 1): with an empty column, since scikit-learn takes a single one for the classes 0 and 1."""
    return np.pad(decisions, ((0, 0), (0, 1))).astype(np.int8)
