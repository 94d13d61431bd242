"""Rows for every task: the first real ones where the shared datasets are at hand, else small ones of our own."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ml.specs.losses.base import TaskType
from tests.shared_data import as_votes, read_shared
from tests.tiny_base import learnable_rows

ROWS = 120


@dataclass(frozen=True)
class Table:
    """A small dataset for one task."""

    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: dict[str, str]
    task: dict[str, Any]

    @property
    def roles_without_groups(self) -> dict[str, str]:
        """The columns of a dataset whose groups were not named: they would decide the split."""
        return {role: header for role, header in self.columns.items() if role != "group"}


def table_for(task: TaskType, *, is_pair: bool = False, is_soft: bool = False) -> Table:
    """Rows of a task. is_pair: of two labels. is_soft: distributions over its labels, made of the grades of sst5."""
    headers: tuple[str, ...] = ("text", "label", "group")
    columns = {"text": "text", "label": "label", "group": "group"}
    if task == "regression":
        headers, columns = ("text", "text_pair", "label"), {"label": "label"}
        rows = [(r["sentence1"], r["sentence2"], r["score"]) for r in _read("stsb")] or [
            (text, label, f"{len(text) / 20}") for text, label in learnable_rows(ROWS)
        ]
    elif task == "multi_label":
        rows = [(r["text"], json.dumps(r["labels"]), r["labels"][0]) for r in _read("goemotions")] or [
            (text, json.dumps([label, *(["long"] if len(text) > 40 else [])]), label)
            for text, label in learnable_rows(ROWS)
        ]
    elif task == "ordinal" or is_soft:
        rows = [(r["text"], r["rating"], r["label"]) for r in _read("sst5")] or [
            (text, str(min(5, 1 + len(text) // 15)), label) for text, label in learnable_rows(ROWS)
        ]
    elif is_pair:
        rows = [(r["text"], r["label"], str(len(r["text"]) > 60)) for r in _read("sst2")] or [
            (text, str(label == "other"), label) for text, label in learnable_rows(ROWS)
        ]
    else:
        rows = [(r["text"], r["label"], r["fine_label"]) for r in _read("trec")] or [
            (text, label, text[:1]) for text, label in learnable_rows(ROWS)
        ]
    if is_soft:
        rows = [(text, json.dumps(as_votes(grade)), group) for text, grade, group in rows]
    spec: dict[str, Any] = {"type": task}
    if is_soft and task == "ordinal":
        spec["labels"] = list("12345")
    return Table(headers, rows, columns, spec)


def _read(name: str) -> list[dict[str, Any]]:
    return list(islice(read_shared(name), ROWS))
