"""Label cells: what kind of labels a column holds, and each cell parsed. Cells are text, as they were uploaded."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

CellKind = Literal["names", "lists", "distributions", "numbers"]


def kind_of_cells(cells: Sequence[str]) -> CellKind:
    """lists or distributions when the first cells are JSON lists or objects, numbers when all are, else names."""
    first = cells[:100]
    for kind, opening, python_type in (("lists", "[", list), ("distributions", "{", dict)):
        looks_so = bool(first) and all(cell.lstrip().startswith(opening) for cell in first)
        if looks_so and all(isinstance(_json(cell), python_type) for cell in first):
            return kind  # type: ignore[return-value]
    return "numbers" if all(to_number(cell) is not None for cell in cells) else "names"


def to_number(cell: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(cell) if "_" not in cell else math.nan  # Python would read 1_000
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def to_list(cell: str) -> list[str] | None:
    """A JSON list of label names, or None. Labels are names, so numbers are written as such."""
    value = _json(cell)
    if not isinstance(value, list) or not all(isinstance(one, str | int) for one in value):
        return None
    return [str(one) for one in value]


def to_distribution(cell: str) -> dict[str, float] | None:
    """A JSON object of label → probability, rescaled to sum 1, or None. Vote counts are welcome."""
    value = _json(cell)
    if not isinstance(value, dict) or not value:
        return None
    try:
        weights = {name: float(weight) for name, weight in value.items()}
    except (TypeError, ValueError, OverflowError):
        return None
    total = sum(weights.values())
    if not math.isfinite(total) or total <= 0 or min(weights.values()) < 0:
        return None
    return {name: weight / total for name, weight in weights.items()}


def count_labels(kind: CellKind, cells: Sequence[str]) -> Counter[str]:
    """Rows by label name. A row of several labels counts for each; a distribution for its likeliest.

    A cell that is no list, or no distribution, counts for none.
    """
    counts: Counter[str] = Counter()
    for cell, rows in Counter(cells).items():
        if kind == "lists":
            counts.update(dict.fromkeys(to_list(cell) or (), rows))
        elif kind == "distributions":
            if distribution := to_distribution(cell):
                counts.update(dict.fromkeys(distribution, 0))
                counts[max(distribution, key=distribution.__getitem__)] += rows
        else:
            counts[cell] += rows
    return counts


def _json(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return None
