"""Any number of labels a text: each label by itself, given where its score passes its threshold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import calibration, multi_label
from ml.evaluation.scores import sigmoid
from ml.tasks.base import UNCALIBRATED, Array, Calibration, Targets, Task
from ml.tasks.cells import to_list
from ml.tasks.readings import LabelReading


@dataclass(frozen=True)
class MultiLabelTask(Task):
    """L labels; targets (N, L) float32 of 0 and 1."""

    labels: tuple[str, ...]
    reading: LabelReading
    calibration: Calibration = UNCALIBRATED
    thresholds: tuple[float, ...] | None = None  # null: one half each

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
        """σ(z), so that a score lies between 0 and 1 even where the loss makes no probability of it."""
        return True

    def encode(self, cells: Sequence[str]) -> Targets:
        """JSON lists of names to (N, L)."""
        index = {label: i for i, label in enumerate(self.labels)}
        targets = np.zeros((len(cells), len(self.labels)), np.float32)
        for row, cell in enumerate(cells):
            for label in to_list(cell) or ():
                targets[row, index[label]] = 1
        return targets

    def scores(self, outputs: Array) -> NDArray[np.float64]:
        """(N, L), calibrated."""
        if self.calibration.platt is not None:
            a, b = np.array(self.calibration.platt).T
            return sigmoid(self.reading.raw(outputs) * a + b)
        return self.reading.scores(outputs / self.calibration.temperature)

    def decode(self, outputs: Array) -> list[dict[str, Any]]:
        """Every label whose score passes its threshold, the highest score, and all scores."""
        return self._decode_scores(self.scores(outputs))

    def decode_pooled(self, outputs: Array, pool: Callable[[Array], NDArray[np.float64]]) -> list[dict[str, Any]]:
        """The same of pooled scores."""
        return self._decode_scores(pool(self.scores(outputs)))

    def _decode_scores(self, scores: NDArray[np.float64]) -> list[dict[str, Any]]:
        results = []
        for row, given in zip(scores, scores >= self._thresholds, strict=True):
            named = dict(zip(self.labels, row.tolist(), strict=True))
            chosen = [label for label, is_given in zip(self.labels, given, strict=True) if is_given]
            results.append({"labels": chosen, "score": float(row.max()), "scores": named})
        return results

    def evaluate(self, outputs: Array, targets: Targets) -> dict[str, float]:
        """macro_f1 and micro_f1 at the thresholds, exact matches, roc_auc, average_precision."""
        scores = self.scores(outputs)
        metrics = multi_label.evaluate(scores, targets, self._thresholds)
        return metrics | {"macro_f1_at_half": multi_label.macro_f1(scores >= 0.5, targets)}

    def answers(self, outputs: Array) -> NDArray[np.bool_]:
        """Whether each label is given (N, L)."""
        given: NDArray[np.bool_] = self.scores(outputs) >= self._thresholds
        return given

    def truth(self, targets: Targets) -> NDArray[np.bool_]:
        """Whether each label is there (N, L)."""
        there: NDArray[np.bool_] = targets > 0.5
        return there

    def evaluate_answers(self, answers: Targets, truth: Targets) -> dict[str, float]:
        """macro_f1, micro_f1, exact_match, hamming_loss."""
        return multi_label.evaluate_answers(answers, truth)

    def report(self, outputs: Array, targets: Targets) -> dict[str, Any]:
        """By label."""
        return multi_label.report(self.answers(outputs), targets, self.labels)

    def fitted(
        self, outputs: Array, targets: Targets, *, calibrate: str | None, thresholds: str | None
    ) -> "MultiLabelTask":
        """With calibration, then with the thresholds that have the best F1 for each label."""
        task = self
        if calibrate == "platt":
            platt = calibration.fit_platt_by_label(self.reading.raw(outputs), targets)
            task = replace(task, calibration=Calibration(platt=platt))
        elif calibrate == "temperature" and self.reading.has_probabilities:
            temperature = calibration.fit_binary_temperature(outputs, targets)
            task = replace(task, calibration=Calibration(temperature=temperature))
        if thresholds == "f1":
            task = replace(task, thresholds=multi_label.fit_thresholds(task.scores(outputs), targets))
        return task

    @property
    def _thresholds(self) -> NDArray[np.float64]:
        return np.full(len(self.labels), 0.5) if self.thresholds is None else np.array(self.thresholds)
