"""How far off an answer is, over levels 0 … K − 1 that have an order. levels and truth are (N,); N at least 1."""

import numpy as np
from numpy.typing import NDArray

from ml.evaluation.regression import correlations
from ml.evaluation.rows import require_rows

Levels = NDArray[np.int64]


def evaluate(levels: Levels, truth: Levels, classes: int) -> dict[str, float]:
    """mae and rmse in levels, qwk (quadratic weighted kappa) and spearman.

    qwk is left out where all rows have and were given one same level, spearman where either is constant: there they
    are undefined.
    """
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error, root_mean_squared_error

    require_rows(truth, "measuring ordinal classification")
    metrics = {
        "mae": float(mean_absolute_error(truth, levels)),
        "rmse": float(root_mean_squared_error(truth, levels)),
    }
    if (truth != truth[0]).any() or (levels != truth[0]).any():
        metrics["qwk"] = float(cohen_kappa_score(truth, levels, labels=range(classes), weights="quadratic"))
    return metrics | correlations(levels, truth, ("spearman",))
