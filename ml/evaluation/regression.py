"""Metrics of numbers. values and truth are (N,), in the units of the answers; N at least 1."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation.rows import require_rows

Values = NDArray[np.float64]

ERROR_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def evaluate(values: Values, truth: Values) -> dict[str, float]:
    """mae, rmse, r2, pearson and spearman.

    r2 is left out where truth is constant, the correlations where either is: there they are undefined.
    """
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    require_rows(truth, "measuring regression")
    metrics = {
        "mae": float(mean_absolute_error(truth, values)),
        "rmse": float(root_mean_squared_error(truth, values)),
    }
    if np.ptp(truth) > 0:
        metrics["r2"] = float(r2_score(truth, values))
    metrics |= correlations(values, truth, ("pearson", "spearman"))
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def correlations(values: NDArray[Any], truth: NDArray[Any], kinds: tuple[str, ...]) -> dict[str, float]:
    """pearson and spearman (by rank), each where it is defined: where both arrays (N,) vary."""
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(values) == 0 or np.ptp(truth) == 0:
        return {}
    found = {kind: float({"pearson": pearsonr, "spearman": spearmanr}[kind](values, truth).statistic) for kind in kinds}
    # Values that differ only in their last digits may have no variance that can be represented.
    return {kind: value for kind, value in found.items() if math.isfinite(value)}


def report(values: Values, truth: Values) -> dict[str, Any]:
    """Quantiles of value − truth, below 0 where the answer was too low, and the number of rows."""
    require_rows(truth, "a report")
    quantiles = np.quantile(values - truth, ERROR_QUANTILES).tolist()
    names = map(str, ERROR_QUANTILES)
    return {"quantiles_of_error": dict(zip(names, quantiles, strict=True)), "rows": len(truth)}
