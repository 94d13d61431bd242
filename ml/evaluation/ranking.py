"""How well scores order rows, label by label. A score need not be a probability."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def evaluate(scores: Scores, is_true: NDArray[np.bool_]) -> dict[str, float]:
    """roc_auc and average_precision of scores (N, L) against is_true (N, L).

    Both are means over the labels that some rows have and some have not; without such a label both are left out.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    with_both = is_true.any(0) & ~is_true.all(0)  # (L,)
    if not with_both.any():
        return {}
    truth, ranked = is_true.compress(with_both, 1), scores.compress(with_both, 1)
    return {
        "roc_auc": float(roc_auc_score(truth, ranked, average="macro")),
        "average_precision": float(average_precision_score(truth, ranked, average="macro")),
    }
