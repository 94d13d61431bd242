"""One label a text: targets, decoding, metrics. Also for labels that have an order, see `ml.tasks.ordinal`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import calibration, classification
from ml.evaluation.scores import softmax
from ml.tasks.base import UNCALIBRATED, Array, Calibration, Targets, Task
from ml.tasks.cells import to_distribution
from ml.tasks.readings import LabelReading


@dataclass(frozen=True)
class TextClassificationTask(Task):
    """C labels; targets are class ids (N,), or distributions (N, C) where the cells hold them."""

    labels: tuple[str, ...]
    reading: LabelReading
    is_soft: bool = False
    calibration: Calibration = UNCALIBRATED

    @property
    def width(self) -> int:
        """Outputs of the head."""
        return self.reading.width

    @property
    def output_names(self) -> list[str]:
        """By the reading."""
        return self.reading.output_names(self.labels)

    @property
    def has_probabilities(self) -> bool:
        """Whether scores are probabilities."""
        return self.reading.has_probabilities or self.calibration.platt is not None

    def encode(self, cells: Sequence[str]) -> Targets:
        """Names to ids (N,) int64; distributions to (N, C) float32."""
        index = {label: i for i, label in enumerate(self.labels)}
        if not self.is_soft:
            return np.array([index[cell] for cell in cells], np.int64)
        targets = np.zeros((len(cells), len(self.labels)), np.float32)
        for row, cell in enumerate(cells):
            for label, probability in (to_distribution(cell) or {}).items():
                targets[row, index[label]] = probability
        return targets

    def scores(self, outputs: Array) -> NDArray[np.float64]:
        """(N, C), calibrated."""
        if self.calibration.platt is not None:
            raw = self.reading.raw(outputs)
            a, b = np.array(self.calibration.platt).T
            if len(self.labels) == 2:
                # σ of each label over their sum, by logarithms: both may be too small to be told from 0.
                return softmax(-np.logaddexp(0, -(raw * a + b)))
            # Of several labels the mapped scores are taken as logits: in six held-out comparisons that had the lower
            # calibration error in four (0.057 against 0.115 in the widest), σ over its sum in two.
            return softmax(raw * a + b)
        return self.reading.scores(outputs / self.calibration.temperature)

    def decode(self, outputs: Array) -> list[dict[str, Any]]:
        """The likeliest label, its score, and every label's."""
        return self._decode_scores(self.scores(outputs))

    def decode_pooled(self, outputs: Array, pool: Callable[[Array], NDArray[np.float64]]) -> list[dict[str, Any]]:
        """The same of pooled scores."""
        return self._decode_scores(pool(self.scores(outputs)))

    def _decode_scores(self, scores: NDArray[np.float64]) -> list[dict[str, Any]]:
        results = []
        for row, best in zip(scores, self.reading.best(scores), strict=True):
            named = dict(zip(self.labels, row.tolist(), strict=True))
            results.append({"label": self.labels[best], "score": float(row[best]), "scores": named})
        return results

    def evaluate(self, outputs: Array, targets: Targets) -> dict[str, float]:
        """accuracy, macro_f1, mcc, roc_auc, average_precision; with probabilities also loss, ece and brier."""
        scores = self.scores(outputs)
        truth = self.truth(targets)
        metrics = classification.evaluate(self.reading.best(scores), scores, truth)
        if self.has_probabilities:
            metrics |= calibration.evaluate(scores, truth)
        return metrics

    def answers(self, outputs: Array) -> NDArray[np.int64]:
        """Class ids (N,)."""
        return self.reading.best(self.scores(outputs))

    def truth(self, targets: Targets) -> NDArray[np.int64]:
        """Class ids (N,), the likeliest of a distribution."""
        return targets.argmax(-1) if self.is_soft else targets

    def evaluate_answers(self, answers: Targets, truth: Targets) -> dict[str, float]:
        """accuracy, macro_f1, micro_f1, mcc."""
        return classification.evaluate_answers(answers, truth)

    def report(self, outputs: Array, targets: Targets) -> dict[str, Any]:
        """By label, confusion and, with probabilities, reliability."""
        scores = self.scores(outputs)
        truth = self.truth(targets)
        report: dict[str, Any] = classification.report(self.reading.best(scores), truth, self.labels)
        if self.has_probabilities:
            report["reliability"] = calibration.reliability_bins(scores, truth)
        return report

    def fitted(
        self, outputs: Array, targets: Targets, *, calibrate: str | None, thresholds: str | None
    ) -> "TextClassificationTask":
        """With the temperature, or with Platt's maps, that fit these rows best."""
        del thresholds  # the arg max is answered
        truth = self.truth(targets)
        if calibrate == "platt":
            return replace(self, calibration=Calibration(platt=calibration.fit_platt(self.reading.raw(outputs), truth)))
        if calibrate == "temperature" and self.reading.has_probabilities:
            temperature = calibration.fit_temperature(outputs, truth, self.reading.scores)
            return replace(self, calibration=Calibration(temperature=temperature))
        return self
