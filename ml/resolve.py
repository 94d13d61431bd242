"""A spec meets a dataset: what was left open is filled in, what cannot work is refused. Torch-free.

The API calls it before a job exists, the trainer before it starts: a resolved spec resolves to itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml.data.splits import Part, split_rows
from ml.specs.errors import Problem, SpecError, did_you_mean, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.job import JobSpec, TextClassification
from ml.specs.losses import CrossEntropySpec, FocalSpec, Loss

Cells = Mapping[str, Sequence[str | None]]


@dataclass(frozen=True)
class Resolved:
    """A spec with nothing left open, and what it came from."""

    spec: JobSpec
    labels: tuple[str, ...]
    parts: NDArray[np.int8]  # (N,) ml.data.splits.Part of each row
    train_counts: dict[str, int]  # training rows by label
    warnings: tuple[str, ...]


def needed_headers(spec: JobSpec, facts: DatasetFacts) -> list[str]:
    """The columns that `resolve` must see: label, split and group."""
    named = (facts.columns.label, facts.columns.split, spec.split.group_column or facts.columns.group)
    return [header for header in named if header is not None and header in facts.headers]


def resolve(spec: JobSpec, facts: DatasetFacts, base: BaseFacts, cells: Cells) -> Resolved:
    """Fill in and check a spec. `cells` holds the columns named by `needed_headers`. Raises SpecError."""
    label_header = _require_labelled_rows(facts)
    group_header = _group_header(spec, facts)
    label_cells = cells[label_header]
    labels = _resolve_labels(spec, label_header, label_cells)
    parts = split_rows(
        spec.split,
        spec.training.seed,
        label_cells,
        cells[facts.columns.split] if facts.columns.split else None,
        cells[group_header] if group_header else None,
    )
    counted = Counter(label for label, part in zip(label_cells, parts, strict=True) if part == Part.TRAIN)
    train_counts = {label: counted[label] for label in labels}
    _check_counts(spec, parts, train_counts)
    loss = spec.loss or CrossEntropySpec(type="cross_entropy")
    _check_loss(loss, train_counts)
    _check_length(spec, base)
    optimizer = spec.training.optimizer
    if optimizer.learning_rate is None:
        optimizer = optimizer.model_copy(update={"learning_rate": _default_learning_rate(spec, base)})
    resolved = spec.model_copy(
        update={
            "task": TextClassification(labels=list(labels)),
            "loss": loss,
            "split": spec.split.model_copy(update={"group_column": group_header}),
            "training": spec.training.model_copy(update={"optimizer": optimizer}),
        }
    )
    return Resolved(resolved, labels, parts, train_counts, tuple(_warnings(spec, loss, train_counts)))


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


def _group_header(spec: JobSpec, facts: DatasetFacts) -> str | None:
    wanted = spec.split.group_column or facts.columns.group
    if wanted is not None and wanted not in facts.headers:
        raise refuse(
            "/split/group_column",
            f"there is no column '{wanted}'.{did_you_mean(wanted, facts.headers)} Columns: {', '.join(facts.headers)}.",
            "unknown_column",
        )
    return wanted


def _resolve_labels(spec: JobSpec, header: str, cells: Sequence[str | None]) -> tuple[str, ...]:
    found = Counter(cell for cell in cells if cell is not None)
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
            'numbers, not labels. Upload the file again with columns={"label": "…"}.',
            "too_many_labels",
        )
    wanted = spec.task.labels if spec.task else None
    if wanted is None:
        return tuple(sorted(found))
    missing, unknown = sorted(set(found) - set(wanted)), [label for label in wanted if label not in found]
    if missing or unknown:
        said = []
        if missing:
            said.append(f"lacks {_quoted(missing)}")
        if unknown:
            said.append(f"has {_quoted(unknown)}, which no row has")
        raise refuse("/task/labels", f"labels {' and '.join(said)}. The labels are {_quoted(sorted(found))}.")
    return tuple(wanted)


def _check_counts(spec: JobSpec, parts: NDArray[np.int8], train_counts: dict[str, int]) -> None:
    present = [label for label, rows in train_counts.items() if rows]
    if len(present) < 2:
        raise refuse(
            "/split",
            f"the training part holds {sum(train_counts.values())} rows of {len(present)} label(s); it needs at least "
            "two labels. Take smaller shares for validation and test, or mend the split column.",
            "one_class_only",
        )
    if spec.training.early_stopping and not (parts == Part.VALIDATION).any():
        raise refuse(
            "/training/early_stopping",
            "early stopping watches the validation part, which is empty. Give split.validation a share.",
            "no_validation_rows",
        )


def _check_loss(loss: Loss, train_counts: dict[str, int]) -> None:
    labels = list(train_counts)
    weights = loss.class_weights if isinstance(loss, CrossEntropySpec) else loss.alpha
    if isinstance(weights, dict):
        name = "alpha" if isinstance(loss, FocalSpec) else "class_weights"
        _check_label_weights(f"/loss/{name}", name, weights, labels)
    elif weights is not None and (empty := [label for label, rows in train_counts.items() if rows == 0]):
        raise refuse(
            "/loss/class_weights",
            f"{_quoted(empty)} has 0 training rows, and weights by frequency would divide by zero. Add rows of it, "
            "take smaller shares for validation and test, or give a weight for every label.",
        )


def _check_label_weights(pointer: str, name: str, weights: Mapping[str, float], labels: Sequence[str]) -> None:
    missing = [label for label in labels if label not in weights]
    unknown = [label for label in weights if label not in labels]
    if not missing and not unknown:
        if not any(weights.values()):
            raise refuse(pointer, f"{name} are all 0: nothing would be learned. Give one label a weight above 0.")
        return
    said = []
    if missing:
        said.append(f"lacks {_quoted(missing)}")
    if unknown:
        said.append(f"has unknown {_quoted(unknown)}")
    hint = did_you_mean(unknown[0], missing) if unknown else ""
    raise SpecError([Problem(pointer, f"{name} {' and '.join(said)}; labels are {', '.join(labels)}.{hint}")])


def _check_length(spec: JobSpec, base: BaseFacts) -> None:
    if spec.training.max_length > base.max_length:
        raise refuse(
            "/training/max_length",
            f"'max_length' is {spec.training.max_length}, and base model '{base.name}' reads at most "
            f"{base.max_length} tokens.",
        )


def _default_learning_rate(spec: JobSpec, base: BaseFacts) -> float:
    if spec.tuning.type == "frozen":
        return 1e-2
    return 1e-4 if base.hidden_size <= 512 else 3e-5


def _warnings(spec: JobSpec, loss: Loss, train_counts: dict[str, int]) -> list[str]:
    said = []
    if empty := [label for label, rows in train_counts.items() if rows == 0]:
        said.append(f"{_quoted(empty)} has no training rows: the model cannot learn it.")
    if isinstance(loss, FocalSpec) and loss.alpha and len(set(loss.alpha.values())) == 1:
        said.append("alpha is the same for every label: it only rescales the learning rate.")
    if spec.tuning.type == "frozen" and spec.training.dropout:
        said.append("a frozen encoder runs without dropout: training.dropout acts on the head alone.")
    return said


def _quoted(labels: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"
