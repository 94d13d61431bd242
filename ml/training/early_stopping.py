"""When to stop, and which weights were best. It knows numbers, not networks."""

from dataclasses import dataclass

from ml.specs.job import EarlyStopping

LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse", "ece", "brier", "hamming_loss"})


@dataclass
class Patience:
    """The state of early stopping; it goes into every checkpoint."""

    best: float | None = None
    best_step: int = 0
    epochs_without: int = 0

    def observe(self, spec: EarlyStopping, value: float | None, step: int) -> bool:
        """Take in one epoch's metric; True when it is the best so far. One that is undefined is no improvement."""
        if value is None:
            self.epochs_without += 1
            return False
        gain = (
            0.0 if self.best is None else (self.best - value if spec.metric in LOWER_IS_BETTER else value - self.best)
        )
        if self.best is None or gain > spec.min_delta:
            self.best, self.best_step, self.epochs_without = value, step, 0
            return True
        self.epochs_without += 1
        return False

    def is_over(self, spec: EarlyStopping) -> bool:
        """Whether patience has run out."""
        return self.epochs_without >= spec.patience
