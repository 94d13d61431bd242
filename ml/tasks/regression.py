"""A number a text: standardised for training, put back for answers and metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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

    def encode(self, cells: Sequence[str]) -> Targets:
        """Numbers as text to standardised numbers."""
        values = np.array([float(cell) for cell in cells], np.float64)
        return ((values - self.shift) / self.scale).astype(np.float32)

    def decode(self, outputs: Array) -> list[dict[str, Any]]:
        """The value and, where the loss gives more, a deviation or quantiles."""
        values = self.reading.values(outputs) * self.scale + self.shift
        details = self.reading.details(outputs, self.scale, self.shift)
        return [{"value": float(value), **detail} for value, detail in zip(values, details, strict=True)]

    def evaluate(self, outputs: Array, targets: Targets) -> dict[str, float]:
        """mae, rmse, pearson, spearman and r2, in the target's own units."""
        values = self.reading.values(outputs) * self.scale + self.shift
        return regression.evaluate(values, targets.astype(np.float64) * self.scale + self.shift)

    def report(self, outputs: Array, targets: Targets) -> dict[str, Any]:
        """How errors are spread."""
        values = self.reading.values(outputs) * self.scale + self.shift
        return regression.report(values, targets.astype(np.float64) * self.scale + self.shift)
