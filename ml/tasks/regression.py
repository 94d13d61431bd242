"""A number a text: standardised for training, put back for answers and metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import regression
from ml.tasks.base import Array, Targets, Task
from ml.tasks.readings import ValueReading


@dataclass(frozen=True)
class RegressionTask(Task):
    """Targets are (y − shift) / scale, (N,) float32."""

    reading: ValueReading
    shift: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """Outputs of the head."""
        return self.reading.width

    @property
    def output_names(self) -> list[str]:
        """By the reading, in standardised units."""
        return self.reading.output_names

    @property
    def has_probabilities(self) -> bool:
        """Values are none."""
        return False

    def scores(self, outputs: Array) -> NDArray[np.float64]:
        """The value (N, 1), in the target's own units."""
        return self.answers(outputs)[:, None]

    def encode(self, cells: Sequence[str]) -> Targets:
        """Numbers as text to standardised numbers."""
        values = np.array([float(cell) for cell in cells], np.float64)
        return ((values - self.shift) / self.scale).astype(np.float32)

    def decode(self, outputs: Array) -> list[dict[str, Any]]:
        """The value and, where the loss gives more, a deviation or quantiles."""
        values = self.answers(outputs)
        details = self.reading.details(outputs, self.scale, self.shift)
        return [{"value": float(value), **detail} for value, detail in zip(values, details, strict=True)]

    def decode_pooled(self, outputs: Array, pool: Callable[[Array], NDArray[np.float64]]) -> list[dict[str, Any]]:
        """The same of pooled outputs."""
        return self.decode(pool(outputs))

    def evaluate(self, outputs: Array, targets: Targets) -> dict[str, float]:
        """mae, rmse, pearson, spearman and r2, in the target's own units."""
        return self.evaluate_answers(self.answers(outputs), self.truth(targets))

    def answers(self, outputs: Array) -> NDArray[np.float64]:
        """Values (N,) in the target's own units."""
        return self.reading.values(outputs) * self.scale + self.shift

    def truth(self, targets: Targets) -> NDArray[np.float64]:
        """The same."""
        return targets.astype(np.float64) * self.scale + self.shift

    def evaluate_answers(self, answers: Targets, truth: Targets) -> dict[str, float]:
        """All of them."""
        return regression.evaluate(answers, truth)

    def report(self, outputs: Array, targets: Targets) -> dict[str, Any]:
        """How errors are spread."""
        return regression.report(self.answers(outputs), self.truth(targets))
