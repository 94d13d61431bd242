"""Metrics of single-label classification. predicted and targets are class ids (N,); N is at least 1."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def accuracy(predicted: Ids, targets: Ids) -> float:
    """Share of rows whose label was found."""
    return float((predicted == targets).mean())


def f1_by_class(predicted: Ids, targets: Ids, classes: int) -> NDArray[np.float64]:
    """F1 of each class (C,): 2·hits / (predicted + true); 0 for a class that is neither predicted nor there."""
    hits = np.bincount(targets[predicted == targets], minlength=classes)
    both = np.bincount(predicted, minlength=classes) + np.bincount(targets, minlength=classes)
    return np.asarray(2 * hits / np.maximum(both, 1))


def macro_f1(predicted: Ids, targets: Ids, classes: int) -> float:
    """Mean F1 over the classes that occur in predicted or targets, each counted once (as scikit-learn has it)."""
    present = np.union1d(predicted, targets)
    return float(f1_by_class(predicted, targets, classes)[present].mean())


def log_loss(probabilities: NDArray[np.float64], targets: Ids) -> float:
    """Mean −log of the probability (N, C) given to the true label; probabilities are kept above 1e-15."""
    chosen = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(chosen, 1e-15)).mean())


def per_label_report(predicted: Ids, targets: Ids, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and rows by label name."""
    classes = len(labels)
    hits = np.bincount(targets[predicted == targets], minlength=classes)
    found, true = np.bincount(predicted, minlength=classes), np.bincount(targets, minlength=classes)
    f1 = f1_by_class(predicted, targets, classes)
    return {
        label: {
            "precision": float(hits[i] / max(found[i], 1)),
            "recall": float(hits[i] / max(true[i], 1)),
            "f1": float(f1[i]),
            "rows": int(true[i]),
        }
        for i, label in enumerate(labels)
    }
