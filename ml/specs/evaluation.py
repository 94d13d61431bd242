"""What is fitted on the validation part after training, and stored with the model."""

from typing import Literal

from pydantic import Field

from ml.specs.base import Spec


class Evaluation(Spec):
    """Calibration and thresholds."""

    calibrate: Literal["temperature", "platt"] | None = Field(
        "temperature",
        description="temperature divides the logits by one number, platt maps scores to probabilities; null: neither. "
        "The default is null for a regression, and where a loss gives scores.",
    )
    thresholds: Literal["f1"] | None = Field(
        "f1",
        description="multi_label: the threshold of each label that has the best F1; null: one half. For other tasks "
        "the default is null, and f1 is refused.",
    )
