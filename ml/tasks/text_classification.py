"""One label a text: targets, decoding, metrics. numpy only; it knows no network and no loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation.classification import accuracy, log_loss, macro_f1, per_label_report
from ml.evaluation.scores import softmax


@dataclass(frozen=True)
class TextClassificationTask:
    """C labels, one logit each; a score is a probability by softmax."""

    labels: tuple[str, ...]

    @property
    def head_size(self) -> int:
        """Outputs of the head: C."""
        return len(self.labels)

    def encode(self, cells: Sequence[str]) -> NDArray[np.int64]:
        """Label names to class ids (N,)."""
        index = {label: i for i, label in enumerate(self.labels)}
        return np.array([index[cell] for cell in cells], np.int64)

    def decode(self, logits: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
        """Logits (N, C) to one result a row: the likeliest label, its probability, and every label's."""
        results = []
        for row in softmax(logits):
            best = int(row.argmax())
            scores = dict(zip(self.labels, row.tolist(), strict=True))
            results.append({"label": self.labels[best], "score": float(row[best]), "scores": scores})
        return results

    def evaluate(self, logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> dict[str, float]:
        """Metrics of logits (N, C) against class ids (N,)."""
        predicted = logits.argmax(-1)
        return {
            "accuracy": accuracy(predicted, targets),
            "macro_f1": macro_f1(predicted, targets, self.head_size),
            "loss": log_loss(softmax(logits), targets),
        }

    def report(self, logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and rows of each label."""
        return per_label_report(logits.argmax(-1), targets, self.labels)
