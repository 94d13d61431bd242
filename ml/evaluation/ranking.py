"""How well scores order rows, label by label. A score need not be a probability."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def evaluate(scores: Scores, is_true: NDArray[np.bool_]) -> dict[str, float]:
    """roc_auc and average_precision of scores (N, L) against is_true (N, L).

    Both are means over the labels that some rows have and some have not; without such a label both are left out.
    """
    ranked = [
        _rank_label(column, has_it)
        for column, has_it in zip(np.ascontiguousarray(scores.T), np.ascontiguousarray(is_true.T), strict=True)
        if has_it.any() and not has_it.all()
    ]
    if not ranked:
        return {}
    roc_auc, average_precision = np.mean(ranked, axis=0).tolist()
    return {"roc_auc": roc_auc, "average_precision": average_precision}


def _rank_label(scores: Scores, is_true: NDArray[np.bool_]) -> tuple[float, float]:
    """Of one label: scores (N,), is_true (N,).

    The average precision is that of a cut at each row that has the label, rows of one score cut together.
    """
    # scikit-learn sorts row numbers, twice: 10.6 s for 100,000 rows and 100 labels, and these two plain sorts 1.7 s.
    with_it, without = np.sort(scores[is_true]), np.sort(scores[~is_true])
    below = np.searchsorted(without, with_it, "left")
    not_above = np.searchsorted(without, with_it, "right")
    hits = len(with_it) - np.searchsorted(with_it, with_it, "left")  # at or above a row's score
    precision = hits / (hits + len(without) - below)
    return float((below + not_above).mean() / (2 * len(without))), float(precision.mean())
