"""Which loss for which data: rules over figures of the label column, each with its evidence and an alternative.

The rules are those of the catalogue of losses (docs: "Which loss for which data"). Torch-free; it knows no text and no
model, and promises no score: a recommendation is where to begin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml.resolve import DEFAULT_METRIC, METRICS, Cells, resolve
from ml.specs.errors import did_you_mean, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.job import JobSpec
from ml.specs.losses.base import TaskType
from ml.specs.losses.table import LOSS_SPECS
from ml.tasks.cells import CellKind, count_labels, kind_of_cells, to_list

LossBody = dict[str, Any]

MILD_IMBALANCE, STRONG_IMBALANCE = 3, 10  # rows of the most frequent label / rows of the rarest
ROWS_TO_ADJUST = 20  # of the rarest label
FEW_ROWS = 10  # of some label
FEW_ROWS_EACH = 16  # of the labels on average
MOST_LEVELS = 20
SPARSE_DENSITY = 0.05
MANY_LABELS = 50
MANY_OUTLIERS = 0.01
NAMED = 3  # labels named in a sentence

# Metrics in which every row counts the same, so that frequent labels decide.
_BY_ROW = ("accuracy", "micro_f1", "loss", "ece", "brier")

_DESAI = "Desai and Durrett 2020, Calibration of Pre-trained Transformers, arXiv:2003.07892"
_CUI = "Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples, arXiv:1901.05555"
_TUNSTALL = "Tunstall et al. 2022, Efficient Few-Shot Learning Without Prompts, arXiv:2209.11055"
_GUNEL = (
    "Gunel et al. 2021, Supervised Contrastive Learning for Pre-trained Language Model Fine-tuning, arXiv:2011.01403"
)


@dataclass(frozen=True)
class Choice:
    """A loss, why, and whose rule it is."""

    loss: LossBody
    reasons: tuple[str, ...]
    alternative: LossBody
    alternative_reason: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recommendation:
    """Where to begin on a dataset. loss and alternative run as they stand in a job spec of that task."""

    task: TaskType
    metric: str
    loss: LossBody
    reasons: list[str]
    evidence: dict[str, Any]
    alternative: LossBody
    alternative_reason: str
    source: list[str]


@dataclass(frozen=True)
class LabelFigures:
    """Of labels. Rows are those that a split column gives to training, else all."""

    rows: int
    counts: Mapping[str, int]  # most frequent first
    is_soft: bool
    groups: int

    @property
    def labels(self) -> int:
        """How many there are."""
        return len(self.counts)

    @property
    def rarest(self) -> tuple[str, int]:
        """The rarest label and its rows."""
        return min(self.counts.items(), key=lambda item: item[1])

    @property
    def ratio(self) -> float | None:
        """Rows of the most frequent label for each of the rarest; None where that has none."""
        rarest = self.rarest[1]
        return max(self.counts.values()) / rarest if rarest else None

    def evidence(self) -> dict[str, Any]:
        """As JSON."""
        label, rows = self.rarest
        return {
            "rows": self.rows,
            "labels": self.labels,
            "counts": dict(self.counts),
            "rarest": {"label": label, "rows": rows},
            "imbalance_ratio": self.ratio,
            "mean_rows_per_label": sum(self.counts.values()) / self.labels,
            "soft_labels": self.is_soft,
            "groups": self.groups,
        }


def recommend(facts: DatasetFacts, base: BaseFacts, cells: Cells, metric: str | None) -> Recommendation:
    """Recommend a loss for a dataset's labels.

    cells: the columns named by `ml.resolve.needed_headers`. base: of the job it would be. metric: what the model will
    be judged by; None: the usual one of the task. Raises SpecError for a metric that no task of these labels has, and
    for a dataset that no job can be trained on.
    """
    usual = resolve(JobSpec(dataset="-", model=base.name), facts, base, cells).state
    assert facts.columns.label is not None, "resolve refuses a dataset without labels"
    every = [cell or "" for cell in cells[facts.columns.label]]
    kind = kind_of_cells(every)
    labels = usual.labels or sorted(count_labels(kind, every))
    task, metric = _task_for(usual.type, kind, len(labels), metric)
    rows = _training_cells(facts, cells, every)
    groups = len(set(cells[facts.columns.group])) if facts.columns.group else 0
    if task == "regression":
        choice, evidence = _for_numbers(rows, metric, groups)
    elif task == "multi_label":
        choice, evidence = _for_lists(rows, labels, metric, groups)
    else:
        figures = _figures(kind, rows, labels, groups)
        choice, evidence = _for_one_label(figures, task, metric), figures.evidence()
    papers = [LOSS_SPECS[name].paper for name in _types(choice.loss)]
    return Recommendation(
        task=task,
        metric=metric,
        loss=choice.loss,
        reasons=list(choice.reasons),
        evidence=evidence,
        alternative=choice.alternative,
        alternative_reason=choice.alternative_reason,
        source=list(dict.fromkeys([*choice.sources, *papers])),
    )


# ----------------------------------------------------------------------------------------------------------------- task


def _task_for(usual: TaskType, kind: CellKind, labels: int, metric: str | None) -> tuple[TaskType, str]:
    """The first task these labels can be that has the metric: levels from 1 to 5 may be names, an order or numbers."""
    tasks = [usual]
    if metric is None:
        return usual, DEFAULT_METRIC[usual]
    if kind == "numbers" and labels <= MOST_LEVELS:
        if metric in ("mae", "qwk"):
            return "ordinal", metric
        tasks = list(dict.fromkeys([usual, "ordinal", "regression"]))
    for task in tasks:
        if metric in METRICS[task]:
            return task, metric
    known = list(dict.fromkeys(name for task in tasks for name in METRICS[task]))
    raise refuse(
        "metric",
        f"'{metric}' is not measured for task '{usual}'.{did_you_mean(metric, known)} There are: {', '.join(known)}.",
        "unknown_metric",
    )


def _training_cells(facts: DatasetFacts, cells: Cells, every: list[str]) -> list[str]:
    if facts.columns.split is None:
        return every
    return [cell for cell, part in zip(every, cells[facts.columns.split], strict=True) if part in (None, "train")]


def _figures(kind: CellKind, cells: Sequence[str], labels: Sequence[str], groups: int) -> LabelFigures:
    counted = count_labels(kind, cells)
    ordered = sorted(labels, key=lambda label: (-counted[label], label))
    return LabelFigures(len(cells), {label: counted[label] for label in ordered}, kind == "distributions", groups)


# ---------------------------------------------------------------------------------------------------- one label a text


def _for_one_label(figures: LabelFigures, task: TaskType, metric: str) -> Choice:
    if figures.is_soft:
        choice = _soft()
    elif task == "ordinal":
        choice = _ordered(figures, metric)
    elif figures.rarest[1] < FEW_ROWS or figures.rows / figures.labels <= FEW_ROWS_EACH:
        choice = _few_rows(figures)
    elif (figures.ratio or 0) >= STRONG_IMBALANCE and figures.rarest[1] >= ROWS_TO_ADJUST:
        choice = _long_tail(figures, metric)
    elif (figures.ratio or 0) >= MILD_IMBALANCE:
        choice = _skewed(figures, metric)
    else:
        choice = _balanced(figures)
    may_have_groups = task in LOSS_SPECS["group_dro"].tasks() and not figures.is_soft
    return _with_groups(choice, figures.groups) if may_have_groups else choice


def _soft() -> Choice:
    return Choice(
        {"type": "kl"},
        ("The cells hold distributions over labels, and kl learns the whole of each, not its likeliest label alone.",),
        {"type": "soft_cross_entropy"},
        "The same gradient; its value also holds the entropy of the labels, so it does not fall to 0.",
    )


def _ordered(figures: LabelFigures, metric: str) -> Choice:
    """Levels that are numbers; resolve offers no more than MOST_LEVELS of them as an order."""
    if figures.labels < 3:
        return Choice(
            {"type": "cross_entropy"},
            (f"There are {figures.labels} levels only, and an order tells nothing before there are 3.",),
            {"type": "huber"},
            "It learns the levels as numbers.",
        )
    assert figures.labels <= MOST_LEVELS, "more levels are numbers"
    return Choice(
        {"type": "corn"},
        (
            f"The {figures.labels} labels are numbers in order, and {metric} counts how far off an answer is: corn "
            f"learns the order, for up to {MOST_LEVELS} levels.",
            _tail(figures),
        ),
        {"type": "huber"},
        "It learns the levels as numbers on one scale, which fits where their steps are even.",
    )


def _few_rows(figures: LabelFigures) -> Choice:
    label, rows = figures.rarest
    return Choice(
        {"terms": [{"loss": {"type": "cross_entropy"}}, {"loss": {"type": "supcon"}, "weight": 0.5}]},
        (
            f"{figures.rows:,} rows over {figures.labels} labels, {figures.rows / figures.labels:.1f} each; the "
            f"rarest, '{label}', has {rows} (few: under {FEW_ROWS}, or {FEW_ROWS_EACH} on average).",
            "supcon draws the rows of a label together, which teaches more from few rows than cross_entropy alone.",
            "Contrastive pre-training before a linear head would be the first choice here, and is not there yet.",
        ),
        {"type": "cross_entropy"},
        'With "tuning": {"type": "frozen"}: a linear head on the encoder as it is has little to overfit with.',
        (_TUNSTALL, _GUNEL),
    )


def _long_tail(figures: LabelFigures, metric: str) -> Choice:
    reasons = [
        f"{_tail(figures)} The ratio is {STRONG_IMBALANCE} or more, and the rarest has the {ROWS_TO_ADJUST} rows to "
        "learn it from: logit_adjusted asks a clearer win of rare labels."
    ]
    if metric in _BY_ROW:
        reasons.append(
            f"{metric} counts every row the same, so plain cross_entropy may score higher on it: logit_adjusted aims "
            "at every label the same."
        )
    return Choice(
        {"type": "logit_adjusted", "tau": 1.0},
        tuple(reasons),
        {"type": "ldam", "deferred_epoch": 2},
        "Wider margins for rare labels, and weights by label from the third epoch on.",
    )


def _skewed(figures: LabelFigures, metric: str) -> Choice:
    weighted = {"type": "cross_entropy", "class_weights": {"scheme": "effective_number", "beta": _beta(figures)}}
    reasons = [_tail(figures)]
    if (figures.ratio or 0) >= STRONG_IMBALANCE:
        reasons.append(f"logit_adjusted needs {ROWS_TO_ADJUST} rows of the rarest label to go by.")
    if metric != "macro_f1":
        reasons.append(f"macro_f1 would ask for weights by label, as it counts each label the same; {metric} does not.")
        alternative = "Weights by label, where rare labels matter more to you than the metric says."
        return Choice({"type": "cross_entropy"}, tuple(reasons), weighted, alternative, (_DESAI,))
    reasons.append(
        "macro_f1 counts rare labels as much as frequent ones: weights by the effective number of rows lift them "
        "without letting a few rows rule."
    )
    alternative = "It shifts the logits by each label's share instead of weighing rows."
    return Choice(weighted, tuple(reasons), {"type": "logit_adjusted", "tau": 1.0}, alternative, (_CUI,))


def _beta(figures: LabelFigures) -> float:
    """Rows beyond 1 / (1 − β) count no more; so β must let the rarest label's rows count, or nothing is weighed."""
    return next((beta for beta in (0.99, 0.999, 0.9999) if 1 / (1 - beta) >= figures.rarest[1]), 0.99999)


def _balanced(figures: LabelFigures) -> Choice:
    return Choice(
        {"type": "cross_entropy"},
        (f"{_tail(figures)} The ratio is under {MILD_IMBALANCE}: nothing needs correcting.",),
        {"type": "gce", "q": 0.7},
        "If you expect 10 to 40% of the labels to be wrong: it is misled less by them. Cleaning them is better still.",
        (_DESAI,),
    )


def _with_groups(choice: Choice, groups: int) -> Choice:
    if groups < 2:
        return choice
    reason = (
        f"The rows have {groups} groups: if the worst does over 10 points worse than the average, group_dro evens them "
        "out; give training.optimizer a weight_decay of 0.1 or more with it."
    )
    sources = (*choice.sources, LOSS_SPECS["group_dro"].paper)
    return Choice(choice.loss, choice.reasons, {"type": "group_dro"}, reason, sources)


def _tail(figures: LabelFigures) -> str:
    """How even the labels are, in a sentence."""
    shown = ", ".join(f"'{label}' {rows:,}" for label, rows in list(figures.counts.items())[:NAMED])
    label, rows = figures.rarest
    ratio = "no rows" if figures.ratio is None else f"{rows:,}, a ratio of {figures.ratio:.1f}"
    return f"{figures.rows:,} rows, {figures.labels} labels: most have {shown}; the rarest, '{label}', has {ratio}."


# ------------------------------------------------------------------------------------------------ several labels a text


def _for_lists(cells: Sequence[str], labels: Sequence[str], metric: str, groups: int) -> tuple[Choice, dict[str, Any]]:
    figures = _figures("lists", cells, labels, groups)
    sizes = np.array([len(set(to_list(cell) or ())) for cell in cells])
    mean = float(sizes.mean())
    density = mean / figures.labels
    evidence = {
        **figures.evidence(),
        "mean_labels_per_row": mean,
        "density": density,
        "share_of_rows_with_several_labels": float((sizes > 1).mean()),
        "share_of_rows_without_labels": float((sizes == 0).mean()),
    }
    said = f"{figures.rows:,} rows, {figures.labels} labels, {mean:.2f} a row: a density of {density:.1%}."
    asl, bce = {"type": "asl"}, {"type": "bce"}
    if density < SPARSE_DENSITY or figures.labels > MANY_LABELS:
        limits = f"under {SPARSE_DENSITY:.0%}" if density < SPARSE_DENSITY else f"over {MANY_LABELS} labels"
        why = f"That is sparse ({limits}): asl keeps the many easy negatives from drowning the positives."
        return Choice(asl, (said, why), bce, "Its scores are probabilities; asl's focusing bends them."), evidence
    why = "Each label is a yes or no of its own; evaluation.thresholds 'f1', the default, tunes where yes begins."
    if metric not in ("macro_f1", "micro_f1", "exact_match", "hamming_loss"):
        why = f"Each label is a yes or no of its own, and {metric} looks at its probability."
    return Choice(bce, (said, why), asl, "It looks harder at the positives, where rare labels are missed."), evidence


# ----------------------------------------------------------------------------------------------------- a number a text


def _for_numbers(cells: Sequence[str], metric: str, groups: int) -> tuple[Choice, dict[str, Any]]:
    numbers = np.array([float(cell) for cell in cells])
    low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75]).tolist()
    reach = 1.5 * (high - low)
    outliers = float(((numbers < low - reach) | (numbers > high + reach)).mean())
    levels = len(np.unique(numbers))
    evidence = {
        "rows": len(numbers),
        "distinct": levels,
        "mean": float(numbers.mean()),
        "standard_deviation": float(numbers.std()),
        "least": float(numbers.min()),
        "greatest": float(numbers.max()),
        "quartiles": [low, middle, high],
        "outlier_share": outliers,
        "groups": groups,
    }
    said = (
        f"{len(numbers):,} numbers from {numbers.min():g} to {numbers.max():g}; {outliers:.1%} lie further than 1.5 "
        "interquartile ranges outside the middle half."
    )
    if outliers > MANY_OUTLIERS:
        why = f"That is over {MANY_OUTLIERS:.0%}: huber lets an outlier pull by a bounded amount."
        return Choice({"type": "huber"}, (said, why), {"type": "mae"}, "It aims at the median alone."), evidence
    if metric == "mae":
        why = f"{levels} levels are too many for corn ({MOST_LEVELS}); huber is close to what mae measures."
        return Choice({"type": "huber"}, (said, why), {"type": "mae"}, "It minimises the metric itself."), evidence
    why = f"That is at most {MANY_OUTLIERS:.0%}: mse is good enough, and what most metrics of numbers reward."
    return Choice({"type": "mse"}, (said, why), {"type": "huber"}, "It is safer where labels may be wrong."), evidence


def _types(loss: LossBody) -> list[str]:
    terms = loss.get("terms", [{"loss": loss}])
    return [term["loss"]["type"] for term in terms]
