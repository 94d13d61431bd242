"""A spec meets a dataset: what was left open is filled in, what cannot work is refused. Torch-free.

The API calls it before a job exists, the trainer before it starts: a resolved spec resolves to itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.augmentation_checks import check_augmentation
from ml.data.splits import LEFT_OUT, Part, split_folds, split_rows
from ml.loss_checks import check_loss
from ml.sampler_checks import check_sampler
from ml.specs.errors import SpecError, did_you_mean, quoted, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.job import EarlyStopping, JobSpec, Setup
from ml.specs.losses.base import LossSpec, TaskType
from ml.specs.losses.composition import terms_of
from ml.specs.losses.table import LOSS_SPECS
from ml.specs.tasks import MultiLabel, Ordinal, Regression, Task, TextClassification
from ml.tasks.build import TaskState
from ml.tasks.cells import CellKind, count_labels, kind_of_cells, to_distribution, to_list, to_number
from ml.tasks.readings import has_probabilities
from ml.tuning_checks import resolve_tuning

Cells = Mapping[str, Sequence[str | None]]

DEFAULT_LOSS: dict[TaskType, str] = {
    "text_classification": "cross_entropy",
    "multi_label": "bce",
    "regression": "mse",
    "ordinal": "cross_entropy",
}


_LABEL_METRICS = ("accuracy", "macro_f1", "micro_f1", "mcc", "roc_auc", "average_precision", "loss", "ece", "brier")
METRICS: dict[TaskType, tuple[str, ...]] = {
    "text_classification": _LABEL_METRICS,
    "ordinal": (*_LABEL_METRICS, "mae", "rmse", "qwk", "spearman"),
    "multi_label": (
        *("macro_f1", "micro_f1", "exact_match", "hamming_loss"),
        *("roc_auc", "average_precision", "loss", "ece", "brier"),
    ),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman"),
}
DEFAULT_METRIC: dict[TaskType, str] = {
    "text_classification": "macro_f1",
    "multi_label": "macro_f1",
    "regression": "rmse",
    "ordinal": "qwk",
}


@dataclass(frozen=True)
class Resolved:
    """A spec with nothing left open, and what it came from."""

    spec: JobSpec
    state: TaskState
    parts: NDArray[np.int8]  # (N,) ml.data.splits.Part of each row, or LEFT_OUT
    train_counts: dict[str, int]  # training rows by label; empty for regression
    groups: tuple[str, ...]  # of the dataset's group column, where a loss needs it
    warnings: tuple[str, ...]

    @property
    def train_rows(self) -> int:
        """How many rows train."""
        return int((self.parts == Part.TRAIN).sum())


def needed_headers(spec: Setup, facts: DatasetFacts) -> list[str]:
    """The columns that `resolve` must see: label, split and groups."""
    named = (facts.columns.label, facts.columns.split, facts.columns.group, spec.split.group_column)
    return [header for header in dict.fromkeys(named) if header is not None and header in facts.headers]


def resolve(spec: JobSpec, facts: DatasetFacts, base: BaseFacts, cells: Cells) -> Resolved:
    """Fill in and check a spec. `cells` holds the columns named by `needed_headers`. Raises SpecError."""
    rows = _survey(spec, facts, cells)
    parts = split_rows(spec.split, _split_seed(spec), rows.strata, rows.named, rows.groups)
    return _settle(spec, facts, base, cells, rows, parts)


def resolve_folds(
    spec: JobSpec, facts: DatasetFacts, base: BaseFacts, cells: Cells, count: int
) -> tuple[Resolved, ...]:
    """The same for each run of a cross-validation, of which each has another fold for its test part.

    Each comes with the warnings of all.
    """
    rows = _survey(spec, facts, cells)
    splits = split_folds(spec.split, _split_seed(spec), count, rows.strata, rows.named, rows.groups)
    warnings = _check_folds(rows, splits)
    runs: list[Resolved] = []
    warned: dict[str, list[str]] = {}  # in which folds
    for fold, parts in enumerate(splits, 1):
        try:
            run = _settle(spec, facts, base, cells, rows, parts)
        except SpecError as error:
            if not runs:
                raise
            # Nothing was wrong with the fold before, so it is these rows.
            problems = [replace(problem, message=f"in fold {fold}, {problem.message}") for problem in error.problems]
            raise SpecError(problems) from error
        runs.append(run)
        for warning in run.warnings:
            warned.setdefault(warning, []).append(str(fold))
    for warning, folds in warned.items():
        warnings.append(warning if len(folds) == count else f"in fold {', '.join(folds)}: {warning}")
    return tuple(replace(run, warnings=tuple(warnings)) for run in runs)


@dataclass(frozen=True)
class _Rows:
    """What is asked of the rows, however they are split."""

    task: Task
    kind: CellKind
    cells: list[str]  # (N,) of the label column
    labels: list[str]
    loss: Any
    needs_groups: bool
    group_header: str | None
    groups: Sequence[str | None] | None  # (N,) of rows that stay together
    named: Sequence[str | None] | None  # (N,) of the split column
    strata: list[str]  # (N,)


def _split_seed(spec: JobSpec) -> int:
    return spec.training.seed if spec.split.seed is None else spec.split.seed


def _survey(spec: JobSpec, facts: DatasetFacts, cells: Cells) -> _Rows:
    header = _require_labelled_rows(facts)
    _check_group_column(spec, facts)
    label_cells = [cell or "" for cell in cells[header]]
    kind = kind_of_cells(label_cells)
    task = spec.task or _infer_task(spec, kind, label_cells)
    labels = _resolve_labels(task, header, kind, label_cells)
    loss = spec.loss or LOSS_SPECS[DEFAULT_LOSS[task.type]](type=DEFAULT_LOSS[task.type])
    if spec.loss is None and kind == "distributions":
        loss = LOSS_SPECS["soft_cross_entropy"](type="soft_cross_entropy")
    needs_groups = any("groups" in term.loss.needs for term in terms_of(loss))
    # A loss that compares groups wants rows of each in every part; else rows of a group stay together.
    group_header = spec.split.group_column or (None if needs_groups else facts.columns.group)
    return _Rows(
        task=task,
        kind=kind,
        cells=label_cells,
        labels=labels,
        loss=loss,
        needs_groups=needs_groups,
        group_header=group_header,
        groups=cells[group_header] if group_header else None,
        named=cells[facts.columns.split] if facts.columns.split else None,
        strata=_strata(task, kind, label_cells),
    )


def _settle(
    spec: JobSpec, facts: DatasetFacts, base: BaseFacts, cells: Cells, rows: _Rows, parts: NDArray[np.int8]
) -> Resolved:
    """What depends on the split: what trains, and whether it can."""
    task, kind, labels, loss = rows.task, rows.kind, rows.labels, rows.loss
    train_cells = list(compress(rows.cells, (parts == Part.TRAIN).tolist()))
    counted = count_labels(kind, train_cells) if labels else {}
    train_counts = {label: counted[label] for label in labels}
    warnings = _check_parts(spec, task, parts, train_counts, rows.groups)
    warnings += check_loss(loss, task.type, labels, train_counts, spec=spec, facts=facts, base=base, kind=kind)
    warnings += check_sampler(spec, loss, task.type, train_counts, kind)
    check_augmentation(spec, loss, base)
    _check_length(spec, base)
    _check_layer_decay(spec)
    state = _task_state(task, loss, labels, kind, train_cells)
    groups: tuple[str, ...] = ()
    if rows.needs_groups and facts.columns.group:
        groups = tuple(sorted({cell or "" for cell in cells[facts.columns.group]}))
    if spec.tuning.type == "frozen" and spec.training.dropout:
        warnings.append("a frozen encoder runs without dropout: training.dropout acts on the head alone.")
    resolved = _fill_in(spec, task, loss, labels, state, base)
    resolved = resolved.model_copy(update={"split": spec.split.model_copy(update={"group_column": rows.group_header})})
    return Resolved(resolved, state, parts, train_counts, groups, tuple(warnings))


def _require_labelled_rows(facts: DatasetFacts) -> str:
    if facts.columns.label is None:
        raise refuse(
            "/dataset",
            "this dataset has no label column. Upload it again with "
            f'columns={{"label": "…"}}; its columns are {", ".join(facts.headers)}.',
            "missing_label_column",
        )
    if facts.empty_texts:
        raise refuse(
            "/dataset",
            f"{facts.empty_texts} rows have no text, the first is row {facts.first_empty_text}. "
            "Remove them or fill them in, and upload the file again.",
            "row_without_text",
        )
    if facts.missing_labels:
        raise refuse(
            "/dataset",
            f"{facts.missing_labels} rows have no label in column '{facts.columns.label}', the first is row "
            f"{facts.first_missing_label}. Remove them or label them, and upload the file again.",
            "row_without_label",
        )
    return facts.columns.label


def _check_group_column(spec: JobSpec, facts: DatasetFacts) -> None:
    wanted = spec.split.group_column
    if wanted is not None and wanted not in facts.headers:
        raise refuse(
            "/split/group_column",
            f"there is no column '{wanted}'.{did_you_mean(wanted, facts.headers)} Columns: {', '.join(facts.headers)}.",
            "unknown_column",
        )


# --------------------------------------------------------------------------------------------------------------- task


def _infer_task(spec: JobSpec, kind: CellKind, cells: Sequence[str]) -> Task:
    """The first task that the column can be, and that the loss is for; where none fits, the column decides."""
    candidates: list[Task] = [TextClassification()]
    if kind == "lists":
        candidates = [MultiLabel()]
    elif kind == "numbers":
        distinct = set(cells)
        is_graded = len(distinct) <= 20 and all(float(cell).is_integer() for cell in distinct)
        candidates = [TextClassification(), Ordinal(), Regression()] if is_graded else [Regression()]
    if spec.loss is None:
        return candidates[0]
    wanted = [set(term.loss.tasks()) for term in terms_of(spec.loss)]
    return next((task for task in candidates if all(task.type in tasks for tasks in wanted)), candidates[0])


def _resolve_labels(task: Task, header: str, kind: CellKind, cells: Sequence[str]) -> list[str]:
    if isinstance(task, Regression):
        _require_numbers(header, cells)
        return []
    _require_kind(task, header, kind, cells)
    found = count_labels(kind, cells)
    if len(found) < 2:
        raise refuse(
            "/dataset",
            f"column '{header}' holds one label only, '{next(iter(found), '')}': there is nothing to tell apart. "
            "At least two labels are needed.",
            "one_class_only",
        )
    if len(found) > 0.5 * len(cells) and len(found) > 100:
        raise refuse(
            "/dataset",
            f"column '{header}' holds {len(found)} different labels in {len(cells)} rows: it reads like free text or "
            'numbers, not labels. Upload the file again with columns={"label": "…"}, or set task to '
            '{"type": "regression"}.',
            "too_many_labels",
        )
    if task.labels is None:
        if isinstance(task, Ordinal):
            return _numeric_order(found)
        return sorted(found)
    missing, unknown = sorted(set(found) - set(task.labels)), [label for label in task.labels if label not in found]
    if missing or unknown:
        said = []
        if missing:
            said.append(f"lacks {quoted(missing)}")
        if unknown:
            said.append(f"has {quoted(unknown)}, which no row has")
        raise refuse("/task/labels", f"labels {' and '.join(said)}. The labels are {quoted(sorted(found))}.")
    return list(task.labels)


def _require_numbers(header: str, cells: Sequence[str]) -> None:
    for row, cell in enumerate(cells, 1):
        if to_number(cell) is None:
            raise refuse(
                "/task/type",
                f"'regression' needs numbers, but row {row} of column '{header}' holds {cell[:40]!r}. Use "
                "text_classification, or mend the column.",
                "not_a_number",
            )


def _require_kind(task: Task, header: str, kind: CellKind, cells: Sequence[str]) -> None:
    if isinstance(task, MultiLabel):
        for row, cell in enumerate(cells, 1):
            if to_list(cell) is None:
                raise refuse(
                    "/task/type",
                    f"'multi_label' needs a JSON list of labels in each cell, but row {row} of column '{header}' "
                    f'holds {cell[:40]!r}. Write it like ["{cell[:20]}"], or use text_classification.',
                    "not_a_list",
                )
        return
    if kind == "lists":
        several = sum(len(to_list(cell) or ()) > 1 for cell in cells)
        raise refuse(
            "/task/type",
            f"the cells of column '{header}' are lists, and {several / len(cells):.0%} of the rows have two or more "
            f"labels, so '{task.type}' cannot fit them. Use task multi_label, with bce or another of its losses.",
            "several_labels",
        )
    if kind == "distributions":
        for row, cell in enumerate(cells, 1):
            if to_distribution(cell) is None:
                raise refuse(
                    "/dataset",
                    f"row {row} of column '{header}' is no distribution: {cell[:40]!r}. Write label → probability, "
                    'e.g. {"positive": 0.8, "negative": 0.2}.',
                    "not_a_distribution",
                )


def _numeric_order(found: Mapping[str, int]) -> list[str]:
    if all(to_number(label) is not None for label in found):
        return sorted(found, key=float)
    raise refuse(
        "/task/labels",
        f"an ordinal task needs ordered labels; set task.labels to the labels in order, lowest first. "
        f"They are {quoted(sorted(found))}.",
        "missing_order",
    )


def _strata(task: Task, kind: CellKind, cells: Sequence[str]) -> list[str]:
    """What a split keeps the shares of: the label, a row's rarest label, or the fifth a number is in."""
    if isinstance(task, Regression):
        numbers = np.array([float(cell) for cell in cells])
        edges = np.quantile(numbers, [0.2, 0.4, 0.6, 0.8])
        return [str(fifth) for fifth in np.searchsorted(edges, numbers)]
    if kind == "lists":
        counts = count_labels(kind, cells)
        return [min(to_list(cell) or [""], key=lambda label: counts[label]) for cell in cells]
    if kind == "distributions":
        return [max((d := to_distribution(cell) or {"": 1.0}), key=d.__getitem__) for cell in cells]
    return list(cells)


def _task_state(task: Task, loss: Any, labels: Sequence[str], kind: CellKind, train_cells: Sequence[str]) -> TaskState:
    main = main_loss(loss)
    reading = main.readings[task.type]
    if not isinstance(task, Regression):
        return TaskState(type=task.type, reading=reading, labels=list(labels), is_soft=kind == "distributions")
    numbers = np.array([float(cell) for cell in train_cells])
    if reading == "log_rate":
        _require_counts(task, main, numbers)
    standardize = task.standardize if task.standardize is not None else reading != "log_rate"
    deviation = float(numbers.std()) or 1.0
    shift, scale = (float(numbers.mean()), deviation) if standardize else (0.0, 1.0)
    quantiles = list(getattr(main, "quantiles", ()))
    return TaskState(type=task.type, reading=reading, shift=shift, scale=scale, quantiles=quantiles)


def _require_counts(task: Regression, loss: LossSpec, numbers: NDArray[np.float64]) -> None:
    if task.standardize:
        raise refuse("/task/standardize", f"'{loss.type}' is for counts, which cannot be standardised; leave it null.")
    if (numbers < 0).any():
        raise refuse(
            "/loss/type",
            f"'{loss.type}' is for counts, and the least target is {numbers.min():g}. Use mse, huber or mae.",
            "negative_count",
        )


def main_loss(loss: Any) -> LossSpec:
    """The task loss of a composition: the first that is no auxiliary term. It decides head and reading."""
    return next(term.loss for term in terms_of(loss) if not term.loss.auxiliary_for)


# ------------------------------------------------------------------------------------------------------------- checks


def _check_parts(
    spec: JobSpec,
    task: Task,
    parts: NDArray[np.int8],
    train_counts: Mapping[str, int],
    group_cells: Sequence[str | None] | None,
) -> list[str]:
    """Training needs rows, and so does what watches validation; another part that came out empty is warned of."""
    present = sum(1 for rows in train_counts.values() if rows)
    train_rows = int((parts == Part.TRAIN).sum())
    if train_rows < 2 or (present < 2 and not isinstance(task, Regression)):
        raise refuse(
            "/split",
            f"the training part holds {train_rows} rows of {present} label(s); it needs at least two labels. "
            "Take smaller shares for validation and test, or mend the split column.",
            "one_class_only",
        )
    warnings: list[str] = []
    for part, name, lost in (
        (Part.VALIDATION, "validation", "nothing is calibrated, or measured during training"),
        (Part.TEST, "test", "the final model is not tested"),
    ):
        if (parts == part).any():
            continue
        share = getattr(spec.split, name)
        why = _why_empty(share, name, len(parts), group_cells)
        if part == Part.VALIDATION and spec.training.early_stopping:
            raise refuse(
                "/training/early_stopping",
                f"early stopping watches the validation part, which is empty. {why}",
                "no_validation_rows",
            )
        if share > 0:
            warnings.append(f"the {name} part is empty, so {lost}. {why}")
    return warnings


def _check_folds(rows: _Rows, splits: Sequence[NDArray[np.int8]]) -> list[str]:
    """Every fold needs a row. What is left out, or is in some folds only, is warned of."""
    count, is_cut = len(splits), (splits[0] != LEFT_OUT).tolist()
    if not all((parts == Part.TEST).any() for parts in splits):
        found, advice = f"{sum(is_cut)} rows", "Take fewer folds, or add rows."
        if rows.groups is not None:
            groups = {group or row for row, group in compress(enumerate(rows.groups), is_cut)}  # as the split has it
            found = f"{len(groups)} groups, which stay whole,"
            advice = "Take fewer folds, or a split.group_column with more groups."
        raise refuse("/folds", f"'folds' is {count}, and there are only {found} to make them of. {advice}")
    warnings = []
    if held_out := is_cut.count(False):
        warnings.append(
            f"the {held_out} rows of the dataset's own test part are left out: the folds are cut from the others, and "
            "each is a test part once."
        )
    if rows.named is not None and (validation := sum(name == "validation" for name in rows.named)):
        warnings.append(
            f"the {validation} rows of the dataset's own validation part are cut into folds with its train rows; each "
            "run draws split.validation of its train rows anew."
        )
    counts = count_labels(rows.kind, list(compress(rows.cells, is_cut))) if rows.labels else {}
    if rare := [label for label in rows.labels if counts[label] < count]:
        warnings.append(f"label {quoted(rare)} has fewer rows than the {count} folds, so some folds hold none of it.")
    return warnings


def _why_empty(share: float, name: str, rows: int, group_cells: Sequence[str | None] | None) -> str:
    """Why a part has no rows, and what helps."""
    if share == 0:
        return f"Give split.{name} a share."
    if group_cells is None:
        return f"split.{name} is {share:g}, and {rows} rows are too few for that. Take a larger share, or add rows."
    groups = len({cell or row for row, cell in enumerate(group_cells)})  # a row without a group is its own
    return (
        f"split.{name} is {share:g}, and of the {groups} groups, which stay whole, none that was drawn fits into it. "
        "Take a larger share, a split.group_column with more groups, or name each row's part in a split column."
    )


def _resolve_early_stopping(spec: JobSpec, state: TaskState) -> EarlyStopping | None:
    stopping = spec.training.early_stopping
    if stopping is None:
        return None
    metric = resolve_metric(stopping.metric, state, "/training/early_stopping/metric")
    return stopping.model_copy(update={"metric": metric})


def resolve_metric(given: str | None, state: TaskState, pointer: str) -> str:
    """A metric that is measured of every model of this task and loss; None takes the task's own."""
    metric = given or DEFAULT_METRIC[state.type]
    is_sure = state.type == "multi_label" or has_probabilities(state.reading)
    measured = [name for name in METRICS[state.type] if is_sure or name not in ("loss", "ece", "brier")]
    if metric not in measured:
        raise refuse(
            pointer,
            f"'{metric}' is not measured for task '{state.type}' with this loss.{did_you_mean(metric, measured)} "
            f"There are: {', '.join(measured)}.",
            "unknown_metric",
        )
    return metric


def _check_length(spec: JobSpec, base: BaseFacts) -> None:
    if spec.training.max_length > base.max_length:
        raise refuse(
            "/training/max_length",
            f"'max_length' is {spec.training.max_length}, and base model '{base.name}' reads at most "
            f"{base.max_length} tokens.",
        )


def _check_layer_decay(spec: JobSpec) -> None:
    decay = spec.training.optimizer.layer_decay
    if decay != 1 and not spec.tuning.trains_layers:
        raise refuse(
            "/training/optimizer/layer_decay",
            f"'layer_decay' is {decay}, but tuning '{spec.tuning.type}' trains no layer. "
            "Leave it out, or use another tuning.",
        )


# ------------------------------------------------------------------------------------------------------------ filling


def _fill_in(spec: JobSpec, task: Task, loss: Any, labels: Sequence[str], state: TaskState, base: BaseFacts) -> JobSpec:
    optimizer = spec.training.optimizer
    if optimizer.learning_rate is None:
        optimizer = optimizer.model_copy(update={"learning_rate": _default_learning_rate(spec, base)})
    if isinstance(task, Regression):
        task = task.model_copy(update={"standardize": (state.shift, state.scale) != (0.0, 1.0)})
    else:
        task = task.model_copy(update={"labels": list(labels)})
    return spec.model_copy(
        update={
            "task": task,
            "loss": loss,
            "tuning": resolve_tuning(spec, base),
            "evaluation": _fill_in_evaluation(spec, state),
            "training": spec.training.model_copy(
                update={"optimizer": optimizer, "early_stopping": _resolve_early_stopping(spec, state)}
            ),
        }
    )


def _fill_in_evaluation(spec: JobSpec, state: TaskState) -> Any:
    """A default that does not apply becomes null; the same, asked for by name, is refused."""
    given = spec.evaluation
    calibrate, thresholds = given.calibrate, given.thresholds
    if calibrate is not None and state.type == "regression":
        if "calibrate" in given.model_fields_set:
            raise refuse(
                "/evaluation/calibrate",
                f"'calibrate' is '{calibrate}', and a regression gives numbers: there is no probability to calibrate. "
                "Leave it out, or set it to null.",
            )
        calibrate = None
    elif calibrate == "temperature" and not has_probabilities(state.reading):
        if "calibrate" in given.model_fields_set:
            raise refuse(
                "/evaluation/calibrate",
                "this loss gives scores, not probabilities, so a temperature has nothing to act on; calibrated "
                "probabilities need `evaluation.calibrate` = `platt`.",
            )
        calibrate = None
    if thresholds is not None and state.type != "multi_label":
        if "thresholds" in given.model_fields_set:
            raise refuse(
                "/evaluation/thresholds",
                f"'thresholds' is '{thresholds}', and task '{state.type}' has none: only multi_label asks of each "
                "label whether it is given. Leave it out, or set it to null.",
            )
        thresholds = None
    return given.model_copy(update={"calibrate": calibrate, "thresholds": thresholds})


def _default_learning_rate(spec: JobSpec, base: BaseFacts) -> float:
    narrow, wide = spec.tuning.learning_rates
    usual = narrow if base.hidden_size <= 512 else wide
    optimizer = spec.training.optimizer
    return round(usual * (optimizer.encoder_rate if spec.tuning.trains_encoder else optimizer.added_rate), 12)
