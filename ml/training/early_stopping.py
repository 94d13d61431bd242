"""When to stop, and which weights were best. It knows numbers, not networks."""

from dataclasses import dataclass

from ml.specs.job import EarlyStopping


@dataclass
class Patience:
    """The state of early stopping; it goes into every checkpoint."""

    best: float | None = None
    best_step: int = 0
    epochs_without: int = 0

    def observe(self, spec: EarlyStopping, value: float, step: int) -> bool:
        """Take in one epoch's metric; True when it is the best so far."""
        gain = 0.0 if self.best is None else (self.best - value if spec.metric == "loss" else value - self.best)
        if self.best is None or gain > spec.min_delta:
            self.best, self.best_step, self.epochs_without = value, step, 0
            return True
        self.epochs_without += 1
        return False

    def is_over(self, spec: EarlyStopping) -> bool:
        """Whether patience has run out."""
        return self.epochs_without >= spec.patience
