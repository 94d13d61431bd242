"""What of a dataset an evaluation measures, and what keeps a model from being measured on it.

It knows columns of cells, and neither files nor the model beyond its task.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ml.specs.bulk import ModelEvaluation
from ml.specs.errors import did_you_mean, quoted, refuse, show
from ml.specs.facts import Columns, DatasetFacts
from ml.tasks.build import TaskState
from ml.tasks.cells import CellKind, kind_of_cells, to_distribution, to_list, to_number

MOST_GROUPS = 100

Cells = Mapping[str, Sequence[str | None]]  # by header


@dataclass(frozen=True)
class Selection:
    """The rows of the part that was asked for, by place from 0, and how to read them."""

    asked: Container[int]
    header: str  # of their labels
    labels: dict[int, str]  # the cells of those that have one
    kind: CellKind
    task: TaskState  # the model's, over such cells


def check_pairs(columns: Columns, *, takes_pairs: bool) -> None:
    """Raise SpecError where the model was trained on pairs and the dataset holds single texts, or the reverse."""
    if takes_pairs and columns.text_pair is None:
        raise refuse(
            "/dataset",
            "the model was trained on pairs of texts, and the dataset has no text_pair column. Upload it again with "
            'columns={"text_pair": "your column"}.',
            "pair_expected",
        )
    if not takes_pairs and columns.text_pair is not None:
        raise refuse(
            "/dataset",
            f"the model was trained on single texts, and the dataset holds pairs: its column '{columns.text_pair}' is "
            "the text_pair. Upload it again without that column, or under another name.",
            "single_text_expected",
        )


def needed_headers(spec: ModelEvaluation, facts: DatasetFacts) -> list[str]:
    """The columns that `select_rows` looks at. Raises SpecError for those that are not there."""
    columns = facts.columns
    if columns.label is None:
        raise refuse(
            "/dataset",
            "the dataset has no label column, so there is nothing to measure against. Upload it again with "
            'columns={"label": "your column"}.',
            "no_labels",
        )
    if spec.part is not None and columns.split is None:
        raise refuse("/part", "the dataset has no split column. Leave 'part' out to measure every row.", "no_split")
    if spec.group_column is not None and spec.group_column not in facts.headers:
        raise refuse(
            "/group_column",
            f"there is no column '{spec.group_column}'.{did_you_mean(spec.group_column, facts.headers)} Columns: "
            f"{', '.join(facts.headers)}.",
            "unknown_column",
        )
    wanted = (columns.label, columns.split if spec.part else None, spec.group_column)
    return list(dict.fromkeys(header for header in wanted if header is not None))


def select_rows(spec: ModelEvaluation, facts: DatasetFacts, cells: Cells, task: TaskState) -> Selection:
    """Which rows are measured, by their labels. Raises SpecError where the model could not be."""
    header = facts.columns.label
    assert header is not None, "needed_headers has been asked"
    asked: Container[int] = range(facts.rows)
    if spec.part is not None:
        assert facts.columns.split is not None, "needed_headers has been asked"
        asked = {row for row, part in enumerate(cells[facts.columns.split]) if part == spec.part}
    labels = {row: cell for row, cell in enumerate(cells[header]) if row in asked and cell and cell.strip()}
    if not labels:
        where = f"in part '{spec.part}'" if spec.part else "in the dataset"
        raise refuse("/part" if spec.part else "/dataset", f"no row {where} has a label.", "nothing_to_measure")
    kind = kind_of_cells(list(labels.values()))
    _check_labels(header, labels.values(), kind, task)
    if spec.group_column is not None:
        groups = {group_of(cells[spec.group_column][row]) for row in labels}
        if len(groups) > MOST_GROUPS:
            raise refuse(
                "/group_column",
                f"column '{spec.group_column}' has {len(groups):,} different values, and groups are at most "
                f"{MOST_GROUPS}. Name a column of few values.",
                "too_many_groups",
            )
    return Selection(asked, header, labels, kind, task.model_copy(update={"is_soft": kind == "distributions"}))


def group_of(cell: str | None) -> str | None:
    """A row's group; None where its cell is empty."""
    return cell if cell and cell.strip() else None


def _check_labels(header: str, cells: Iterable[str], kind: CellKind, task: TaskState) -> None:
    """Every label must be of the model's task, and one that it knows."""
    unknown: dict[str, None] = {}
    for cell in dict.fromkeys(cells):
        names = _names_in(cell, kind, task)
        if names is None:
            wanted = {"regression": "a number", "multi_label": "a JSON list of labels"}.get(task.type, "one label")
            raise refuse(
                "/dataset",
                f"the model's task is {task.type}, which needs {wanted} in each cell of column '{header}', and one "
                f"holds {show(cell)}.",
                "wrong_task",
            )
        unknown |= dict.fromkeys(name for name in names if name not in task.labels)
    if unknown:
        raise refuse(
            "/dataset",
            f"column '{header}' holds {quoted(list(unknown))}, which the model doesn't know. It knows: "
            f"{quoted(task.labels)}.",
            "unknown_labels",
        )


def _names_in(cell: str, kind: CellKind, task: TaskState) -> Sequence[str] | None:
    """The labels that a cell names; None where it is none of the task's."""
    if task.type == "regression":
        return None if to_number(cell) is None else ()
    if task.type == "multi_label":
        return to_list(cell)
    if kind == "distributions":
        distribution = to_distribution(cell)
        return None if distribution is None else list(distribution)
    return None if kind == "lists" else (cell,)
