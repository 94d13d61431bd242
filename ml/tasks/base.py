"""What a task is: it encodes labels, decodes outputs and measures. numpy only; it knows no network and no loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Targets = NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """Fitted on validation. temperature divides the outputs; platt is (C, 2): σ(a·z + b) of each label."""

    temperature: float = 1.0
    platt: tuple[tuple[float, float], ...] | None = None


UNCALIBRATED = Calibration()


class Task(ABC):
    """One way to learn from a label column, and to read what was learned."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Outputs of the head."""

    @abstractmethod
    def encode(self, cells: Sequence[str]) -> Targets:
        """Label cells to targets, N first."""

    @property
    @abstractmethod
    def output_names(self) -> list[str]:
        """What each of the H outputs stands for."""

    @abstractmethod
    def decode(self, outputs: Array) -> list[dict[str, Any]]:
        """Outputs (N, H) to one result a row, as a prediction's reply shows it."""

    @abstractmethod
    def decode_pooled(self, outputs: Array, pool: Callable[[Array], NDArray[np.float64]]) -> list[dict[str, Any]]:
        """Outputs (R, H) to one result a text, where a text has several rows. pool: (R, S) to (N, S)."""

    @abstractmethod
    def evaluate(self, outputs: Array, targets: Targets) -> dict[str, float]:
        """Metrics of outputs (N, H) against encoded targets."""

    @property
    @abstractmethod
    def has_probabilities(self) -> bool:
        """Whether scores are probabilities."""

    @abstractmethod
    def scores(self, outputs: Array) -> NDArray[np.float64]:
        """What outputs (N, H) are answered from, (N, S): every label's score, calibrated, or the value."""

    @abstractmethod
    def answers(self, outputs: Array) -> Targets:
        """What outputs (N, H) answer, without how surely: it means the same whatever was fitted. As `truth`."""

    @abstractmethod
    def truth(self, targets: Targets) -> Targets:
        """What the answers should be, N first."""

    @abstractmethod
    def evaluate_answers(self, answers: Targets, truth: Targets) -> dict[str, float]:
        """The metrics that need no scores; of answers that several models gave, too."""

    @abstractmethod
    def report(self, outputs: Array, targets: Targets) -> dict[str, Any]:
        """What a table or a picture is made of: figures by label, confusion, reliability."""

    def fitted(self, _outputs: Array, _targets: Targets, *, calibrate: str | None, thresholds: str | None) -> "Task":
        """The same task with what was fitted on the validation part. By default there is nothing to fit."""
        del calibrate, thresholds
        return self
