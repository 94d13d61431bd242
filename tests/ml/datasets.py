"""Datasets as `resolve` sees them: facts and label cells, no file."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from ml.resolve import Resolved, needed_headers, resolve
from ml.specs.errors import Problem, SpecError
from ml.specs.facts import BaseFacts, Columns, DatasetFacts
from ml.specs.job import JobSpec

LABELS = ["positive"] * 30 + ["negative"] * 30 + ["neutral"] * 40


# What each layer of a BERT consists of.
BERT_LAYERS = (
    *("attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value"),
    *("intermediate.dense", "output.dense"),
)


def base(**changes: Any) -> BaseFacts:
    """A small encoder."""
    whole: dict[str, Any] = {
        "name": "small",
        "model_type": "bert",
        "hidden_size": 384,
        "layers": 6,
        "heads": 12,
        "dropout": 0.1,
    }
    whole |= {"max_length": 512, "vocabulary": 100, "parameters": 1000, "mask_id": 4, "linear_layers": BERT_LAYERS}
    return BaseFacts.model_validate({**whole, **changes})


class Dataset:
    """Rows as `resolve` sees them: facts, and the cells of some columns."""

    def __init__(self, labels: Sequence[str | None] | None = LABELS, **others: Sequence[str | None]) -> None:
        """others: columns by header; `split` and `group` have the role of their name."""
        self.cells = {**({"label": labels} if labels else {}), **others}
        rows = len(next(iter(self.cells.values())))
        counts = Counter(label for label in labels or [] if label)
        missing = [row + 1 for row, label in enumerate(labels or []) if label is None]
        self.facts = DatasetFacts(
            rows=rows,
            headers=["text", *self.cells],
            columns=Columns(
                text="text",
                label="label" if labels else None,
                split="split" if "split" in others else None,
                group="group" if "group" in others else None,
            ),
            recognised=["text"],
            empty_texts=0,
            first_empty_text=None,
            missing_labels=len(missing),
            first_missing_label=missing[0] if missing else None,
            labels=dict(counts),
            distinct_labels=len(counts),
            splits={},
            text_characters=1000,
        )

    def resolve(self, on: BaseFacts | None = None, **body: Any) -> Resolved:
        spec = JobSpec.model_validate({"dataset": "ds_1", **body})
        cells = {header: self.cells[header] for header in needed_headers(spec, self.facts)}
        return resolve(spec, self.facts, on or base(), cells)

    def refuse(self, on: BaseFacts | None = None, **body: Any) -> Problem:
        with pytest.raises(SpecError) as caught:
            self.resolve(on, **body)
        (problem,) = caught.value.problems
        return problem


# Cells of each kind that a label column may hold, 100 rows each.
LISTS = [json.dumps([["sport", "news"][: 1 + i % 2], ["art"], []][i % 3]) for i in range(100)]
DISTRIBUTIONS = [json.dumps({"low": 3 - i % 3, "mid": 1, "high": i % 3}) for i in range(100)]
GRADES = [str(i % 4 + 1) for i in range(100)]
NUMBERS = [f"{i / 8 - 3}" for i in range(100)]
COUNTS = [str(i % 30) for i in range(100)]
GROUPS = [f"group {i % 4}" for i in range(100)]
