"""Whether scores can be taken for probabilities, and the few numbers fitted on validation rows that make them so.

N rows, H outputs, C classes, L labels of which a row may have several.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation.rows import require_rows
from ml.evaluation.scores import sigmoid

Array = NDArray[np.floating[Any]]
Scores = NDArray[np.float64]
Ids = NDArray[np.int64]

BINS = 15
TEMPERATURES = (0.05, 20.0)

# Keeps the loss of a true label that was ruled out finite: 34.5 at most.
_SMALLEST = 1e-15


def evaluate(scores: Scores, truth: Ids) -> dict[str, float]:
    """loss, ece and brier of probabilities (N, C) against class ids (N,).

    loss is the mean −log of the true class's probability; ece the mean gap between confidence and accuracy over 15
    equally wide bins of the likeliest class's probability (Guo et al. 2017); brier the mean over rows of the sum over
    classes of squared errors, 0 to 2.
    """
    require_rows(truth, "measuring calibration")
    errors = scores.copy()
    errors[np.arange(len(truth)), truth] -= 1
    return {
        "loss": log_loss(scores, truth),
        "ece": calibration_error(*_confidence(scores, truth)),
        "brier": float((errors**2).sum(-1).mean()),
    }


def log_loss(scores: Scores, truth: Ids) -> float:
    """Mean −log of the probability (N, C) given to the true class; probabilities are kept above 1e-15."""
    require_rows(truth, "the log loss")
    chosen = scores[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(chosen, _SMALLEST)).mean())


def binary_log_loss(scores: Scores, targets: Array) -> float:
    """Mean binary cross-entropy of all decisions (N, L); probabilities are kept 1e-15 away from 0 and 1."""
    require_rows(targets, "the log loss")
    given = np.where(targets > 0.5, scores, 1 - scores)  # (N, L) the probability of what is true
    return float(-np.log(np.maximum(given, _SMALLEST)).mean())


def calibration_error(confidence: Scores, happened: NDArray[np.bool_]) -> float:
    """Mean over rows of |mean confidence − share that happened| of the row's bin; both arguments are (N,)."""
    bins = _fill_bins(confidence, happened)
    return sum(one["rows"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(happened)


def reliability_bins(scores: Scores, truth: Ids) -> list[dict[str, float]]:
    """The bins that hold rows: {lower, upper, rows, confidence, accuracy}. A bin takes lower < confidence ≤ upper."""
    return _fill_bins(*_confidence(scores, truth))


def fit_temperature(outputs: Array, truth: Ids, read: Callable[[Array], Scores]) -> float:
    """The T in [0.05, 20] that is likeliest given the log loss of read(outputs / T); 1 unless T lowers it.

    outputs (N, H); `read` turns them into probabilities (N, C). Guo et al. 2017: the arg max of a softmax stays. The
    prior of log T is the standard normal, which counts for less the more rows there are: without it, three rows that
    are all right would make every score 1.
    """
    require_rows(truth, "fitting a temperature")
    return _best_temperature(lambda temperature: log_loss(read(outputs / temperature), truth), len(truth))


def fit_binary_temperature(outputs: Array, targets: Array) -> float:
    """The same for L labels, each by itself, given the binary cross-entropy of σ(outputs / T)."""
    require_rows(targets, "fitting a temperature")
    return _best_temperature(lambda temperature: binary_log_loss(sigmoid(outputs / temperature), targets), len(targets))


def fit_platt(raw: Array, truth: Ids) -> tuple[tuple[float, float], ...]:
    """(a, b) of each class: σ(a·z + b) is its probability against the rest, from its raw score z in raw (N, C).

    A class that no row or every row has keeps (1, 0).
    """
    return fit_platt_by_label(raw, truth[:, None] == np.arange(raw.shape[1]))


def fit_platt_by_label(raw: Array, targets: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    """The same for labels of which a row may have several: raw and targets are (N, L)."""
    require_rows(targets, "fitting Platt's maps")
    columns = zip(raw.T.astype(np.float64), targets.T > 0.5, strict=True)
    return tuple(_fit_sigmoid(scores, is_true) for scores, is_true in columns)


def _confidence(scores: Scores, truth: Ids) -> tuple[Scores, NDArray[np.bool_]]:
    """The likeliest class's probability (N,) and whether that class is true (N,)."""
    return scores.max(-1), scores.argmax(-1) == truth


def _fill_bins(confidence: Scores, happened: NDArray[np.bool_]) -> list[dict[str, float]]:
    require_rows(happened, "measuring calibration")
    edges = np.arange(BINS + 1) / BINS
    at = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)  # (N,) the bin of each row
    rows = np.bincount(at, minlength=BINS)
    confidences, hits = (np.bincount(at, weights=sums, minlength=BINS) for sums in (confidence, happened))
    return [
        {
            "lower": float(edges[i]),
            "upper": float(edges[i + 1]),
            "rows": int(rows[i]),
            "confidence": float(confidences[i] / rows[i]),
            "accuracy": float(hits[i] / rows[i]),
        }
        for i in np.flatnonzero(rows)
    ]


def _best_temperature(loss: Callable[[float], float], rows: int) -> float:
    """Of a loss that is a mean over so many rows."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: loss(float(np.exp(log_t))) + log_t**2 / (2 * rows),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-4},  # a hundredth of a percent of the temperature
    )
    temperature = float(np.exp(found.x))
    return temperature if loss(temperature) < loss(1.0) else 1.0


def _fit_sigmoid(scores: Scores, is_true: NDArray[np.bool_]) -> tuple[float, float]:
    """Platt 1999: logistic regression of one label on one score (N,), with targets short of 0 and 1.

    (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2) in their place keep a and b finite where the score separates the rows.
    """
    from scipy.optimize import minimize

    positives, negatives = int(is_true.sum()), int((~is_true).sum())
    if not positives or not negatives:
        return 1.0, 0.0
    smoothed = np.where(is_true, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Scores of any size are brought to one, where the search takes equally long steps in a and b.
    center, spread = scores.mean(), scores.std() if np.ptp(scores) > 0 else 1.0
    z = (scores - center) / spread

    def loss_and_gradient(ab: Scores) -> tuple[float, Scores]:
        logits = ab[0] * z + ab[1]
        excess = sigmoid(logits) - smoothed
        loss = (np.logaddexp(0, logits) - smoothed * logits).mean()
        return float(loss), np.array([(excess * z).mean(), excess.mean()])

    start = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    found = minimize(loss_and_gradient, start, jac=True, method="BFGS")
    a = float(found.x[0] / spread)
    return a, float(found.x[1] - a * center)
