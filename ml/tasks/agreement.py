"""How far apart two files of one model answer, and whether the second may be served in the place of the first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ml.tasks.base import Array, Targets, Task

MOST_CHANGED = 0.02  # of the texts may have another answer
MOST_MOVED = 0.01  # is what scores may move by, on average
MOST_FALLEN = 0.005  # is what the metric may fall by
FEWEST_LABELLED = 500  # rows are enough to measure a metric's fall
VALUE_MOVES = 0.1  # deviations make another answer of a number

METRIC = {"text_classification": "macro_f1", "multi_label": "macro_f1", "ordinal": "qwk", "regression": "r2"}


class Agreement(BaseModel):
    """The second file against the first, over the same texts."""

    texts: int
    changed: float = Field(description="Share of the texts whose label, labels or value became another.")
    moved: float = Field(
        description="What the score that moved most moved by, averaged over the texts; in standard deviations where "
        "scores are no probabilities."
    )
    labelled: int = Field(description="Texts among them that were held out from training.")
    metric: str
    fall: float | None = Field(description="Of the metric over those; null where they are too few or it is undefined.")

    def objection(self) -> str | None:
        """Why the second may not be served in the first's place; None where it may."""
        if self.changed > MOST_CHANGED:
            return f"{self.changed:.1%} of {self.texts} answers changed, and at most {MOST_CHANGED:.0%} may"
        if not self.moved <= MOST_MOVED:  # nor may it be NaN
            return f"scores moved by {self.moved:.4f} on average, and may by {MOST_MOVED}"
        if self.fall is not None and not self.fall <= MOST_FALLEN:
            return f"{self.metric} fell by {self.fall:.4f} on {self.labelled} rows, and may by {MOST_FALLEN}"
        return None


@dataclass(frozen=True)
class HeldOut:
    """Those of the texts that were held out from training, and what their answers should be."""

    rows: NDArray[np.int64]  # (M,) places among the texts
    targets: Targets  # M first


def compare(task: Task, kind: str, first: Array, second: Array, held_out: HeldOut) -> Agreement:
    """Outputs (N, H) of both files for the same texts. kind: the task's type."""
    metric, fall = METRIC[kind], None
    if len(held_out.rows) >= FEWEST_LABELLED:
        truth, rows = task.truth(held_out.targets), held_out.rows
        before, after = (
            task.evaluate_answers(task.answers(outputs[rows]), truth).get(metric) for outputs in (first, second)
        )
        fall = None if before is None or after is None else before - after
    return Agreement(
        texts=len(first),
        changed=float(answers_changed(task, first, second).mean()),
        moved=float(score_moves(task, first, second).mean()),
        labelled=len(held_out.rows),
        metric=metric,
        fall=fall,
    )


def answers_changed(task: Task, first: Array, second: Array) -> NDArray[np.bool_]:
    """(N,): whether each text has another label, set of labels, or a value that moved by a tenth of a deviation."""
    answers = task.answers(first)
    if np.issubdtype(answers.dtype, np.floating):
        return score_moves(task, first, second) > VALUE_MOVES
    changed: NDArray[np.bool_] = (answers != task.answers(second)).reshape(len(first), -1).any(1)
    return changed


def score_moves(task: Task, first: Array, second: Array) -> NDArray[np.float64]:
    """(N,): what the score of each text that moves most moves by; see `Agreement.moved`."""
    scores = task.scores(first)
    unit = 1.0 if task.has_probabilities else max(float(scores.std()), 1e-12)
    moves: NDArray[np.float64] = np.abs(task.scores(second) - scores).max(-1) / unit
    return moves
