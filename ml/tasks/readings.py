"""How a model's outputs are read: the width of the head, and outputs (N, H) to scores. numpy only.

The loss decides the reading (a spec's `readings`), the artifact records it, and serving never guesses.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ml.evaluation.scores import sigmoid, softmax

Array = NDArray[np.floating[Any]]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class LabelReading(ABC):
    """Outputs over labels: (N, H) → a score for each label (N, C)."""

    labels: int
    has_probabilities: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """H, the outputs of the head."""
        return self.labels

    def output_names(self, labels: Sequence[str]) -> list[str]:
        """What each output stands for."""
        return list(labels)

    @abstractmethod
    def scores(self, outputs: Array) -> Scores:
        """Probabilities where `has_probabilities`, else scores of which higher is likelier."""

    def raw(self, outputs: Array) -> Scores:
        """What Platt's maps take for each label (N, C): an unbounded score."""
        return outputs.astype(np.float64)

    def best(self, scores: Scores) -> NDArray[np.int64]:
        """The label of each row (N,)."""
        return np.asarray(scores.argmax(-1))


class Softmax(LabelReading):
    """One of C labels."""

    def scores(self, outputs: Array) -> Scores:
        """softmax(z)."""
        return softmax(outputs)


class PlainScores(LabelReading):
    """One of C labels, by the highest score; none is a probability."""

    has_probabilities = False

    def scores(self, outputs: Array) -> Scores:
        """z."""
        return outputs.astype(np.float64)


class SigmoidPair(LabelReading):
    """Two labels on one logit, that of the second."""

    width = 1

    def output_names(self, labels: Sequence[str]) -> list[str]:
        """The second label."""
        return [labels[1]]

    def raw(self, outputs: Array) -> Scores:
        """(−z, z)."""
        return np.concatenate([-outputs, outputs], -1).astype(np.float64)

    def scores(self, outputs: Array) -> Scores:
        """(1 − σ(z), σ(z))."""
        return np.concatenate([sigmoid(-outputs), sigmoid(outputs)], -1)


class ScorePair(LabelReading):
    """Two labels on one score, by its sign."""

    width = 1
    has_probabilities = False

    def output_names(self, labels: Sequence[str]) -> list[str]:
        """The second label."""
        return [labels[1]]

    def scores(self, outputs: Array) -> Scores:
        """(−z, z)."""
        return self.raw(outputs)

    def raw(self, outputs: Array) -> Scores:
        """(−z, z)."""
        return np.concatenate([-outputs, outputs], -1).astype(np.float64)


class Sigmoid(LabelReading):
    """Each label by itself."""

    def scores(self, outputs: Array) -> Scores:
        """σ(z)."""
        return sigmoid(outputs)


class MultiScores(LabelReading):
    """Each label by itself, given where its score is above 0; σ(z) orders labels and is no probability."""

    has_probabilities = False

    def scores(self, outputs: Array) -> Scores:
        """σ(z), so that a threshold of one half stands for a score of 0."""
        return sigmoid(outputs)


class Levels(LabelReading):
    """K levels on K − 1 logits; the answer is the median level, not the likeliest."""

    @property
    def width(self) -> int:
        """K − 1."""
        return self.labels - 1

    def output_names(self, labels: Sequence[str]) -> list[str]:
        """`> level` for each level but the last."""
        return [f"> {label}" for label in labels[:-1]]

    def raw(self, outputs: Array) -> Scores:
        """Log-odds of each level."""
        probabilities = np.clip(self.scores(outputs), 1e-12, 1 - 1e-12)
        return np.asarray(np.log(probabilities) - np.log1p(-probabilities))

    def best(self, scores: Scores) -> NDArray[np.int64]:
        """How many thresholds are more likely passed than not."""
        above = 1 - np.cumsum(scores, -1)[:, :-1]  # P(y > k)
        return np.asarray((above > 0.5).sum(-1))


class Cumulative(Levels):
    """K levels on K − 1 logits of P(y > k)."""

    def scores(self, outputs: Array) -> Scores:
        """Differences of the cumulative probabilities, which are made to fall first."""
        return _level_probabilities(np.asarray(np.minimum.accumulate(sigmoid(outputs), -1)))


class Conditional(Levels):
    """K levels on K − 1 logits of P(y > k | y > k − 1): their running product is P(y > k)."""

    def scores(self, outputs: Array) -> Scores:
        """Differences of the running products."""
        return _level_probabilities(np.asarray(np.cumprod(sigmoid(outputs), -1)))


class Rank(LabelReading):
    """K levels 0 … K − 1 on one number: the nearer a level, the higher its score."""

    width = 1
    has_probabilities = False

    def output_names(self, labels: Sequence[str]) -> list[str]:
        """One."""
        del labels
        return ["rank"]

    def raw(self, outputs: Array) -> Scores:
        """−|z − k|."""
        return self.scores(outputs)

    def scores(self, outputs: Array) -> Scores:
        """−|z − k|."""
        return np.asarray(-np.abs(outputs.astype(np.float64) - np.arange(self.labels)))


def _level_probabilities(above: Scores) -> Scores:
    """P(y > k) for K − 1 thresholds → P(y = k) for K levels."""
    edge = np.ones((len(above), 1))
    return np.asarray(np.concatenate([edge, above], -1) - np.concatenate([above, 0 * edge], -1))


LABEL_READINGS: dict[str, type[LabelReading]] = {
    "softmax": Softmax,
    "scores": PlainScores,
    "sigmoid_pair": SigmoidPair,
    "score_pair": ScorePair,
    "sigmoid": Sigmoid,
    "multi_scores": MultiScores,
    "cumulative": Cumulative,
    "conditional": Conditional,
    "rank": Rank,
}


def has_probabilities(kind: str) -> bool:
    """Whether a reading of labels gives probabilities; what reads no labels has nothing to say against it."""
    return kind not in LABEL_READINGS or LABEL_READINGS[kind].has_probabilities


@dataclass(frozen=True)
class ValueReading:
    """Outputs as one number: (N, H) → (N,), in the units that were trained on."""

    kind: str  # value, log_rate, normal or quantiles
    quantiles: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """H, the outputs of the head."""
        return {"normal": 2, "quantiles": len(self.quantiles)}.get(self.kind, 1)

    @property
    def output_names(self) -> list[str]:
        """What each output stands for."""
        if self.kind == "quantiles":
            return [str(quantile) for quantile in self.quantiles]
        return ["value", "log_variance"] if self.kind == "normal" else [self.kind]

    def values(self, outputs: Array) -> Scores:
        """The expected value, or the quantile nearest to the median."""
        if self.kind == "log_rate":
            return np.exp(np.minimum(outputs[:, 0].astype(np.float64), 50.0))
        if self.kind == "quantiles":
            ordered = np.sort(outputs.astype(np.float64), -1)
            return np.asarray(ordered[:, int(np.argmin(np.abs(np.sort(self.quantiles) - 0.5)))])
        return outputs[:, 0].astype(np.float64)

    def details(self, outputs: Array, scale: float, shift: float) -> list[dict[str, Any]]:
        """What a reading knows besides the value, for each row: a deviation, or every quantile."""
        if self.kind == "normal":
            deviations = np.exp(0.5 * np.clip(outputs[:, 1].astype(np.float64), -30, 30)) * scale
            return [{"standard_deviation": float(deviation)} for deviation in deviations]
        if self.kind == "quantiles":
            # Quantiles that cross are put in order, which never raises the pinball loss.
            ordered = np.sort(outputs.astype(np.float64) * scale + shift, -1)
            names = [str(quantile) for quantile in sorted(self.quantiles)]
            return [{"quantiles": dict(zip(names, row.tolist(), strict=True))} for row in ordered]
        return [{} for _ in outputs]


def label_reading(kind: str, labels: Sequence[str]) -> LabelReading:
    """The reading of that name over these labels."""
    return LABEL_READINGS[kind](len(labels))
