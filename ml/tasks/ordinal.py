"""One label a text, of labels that have an order: classification that also counts how far off an answer is."""

from dataclasses import dataclass

from ml.evaluation import ordinal
from ml.tasks.base import Array, Targets
from ml.tasks.text_classification import TextClassificationTask


@dataclass(frozen=True)
class OrdinalTask(TextClassificationTask):
    """K levels, lowest first; targets are levels (N,)."""

    def evaluate(self, outputs: Array, targets: Targets) -> dict[str, float]:
        """What classification measures, and mae, qwk and spearman over the levels."""
        levels, truth = self.answers(outputs), self.truth(targets)
        return super().evaluate(outputs, targets) | ordinal.evaluate(levels, truth, len(self.labels))

    def evaluate_answers(self, answers: Targets, truth: Targets) -> dict[str, float]:
        """Those of classification, and mae, rmse, qwk and spearman over the levels."""
        return super().evaluate_answers(answers, truth) | ordinal.evaluate(answers, truth, len(self.labels))
