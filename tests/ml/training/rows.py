"""Rows for every task: the first real ones where the shared datasets are at hand, else small ones of our own."""

import csv
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ml.specs.losses.base import TaskType
from tests.tiny_base import learnable_rows

ROWS = 120
_SHARED = Path(os.environ.get("MINIMAND_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")


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
        rows = [(text, _spread(grade), group) for text, grade, group in rows]
    spec: dict[str, Any] = {"type": task}
    if is_soft and task == "ordinal":
        spec["labels"] = list("12345")
    return Table(headers, rows, columns, spec)


def _spread(grade: str) -> str:
    """A grade as votes: most for itself, some for its neighbours."""
    return json.dumps({g: 4 - min(3, 2 * abs(int(g) - int(grade))) for g in "12345"})


def _read(name: str) -> list[dict[str, Any]]:
    folder = _SHARED / name
    file = next((file for file in sorted(folder.glob("train.*"))), None)
    return [] if file is None else list(islice(_lines(file), ROWS))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as text:
        if ".jsonl" in file.name:
            yield from map(json.loads, text)
        else:
            yield from csv.DictReader(text)
