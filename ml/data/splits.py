"""Rows to train, validation and test parts: by the dataset's own column where it has one, else drawn by the seed.

It knows values, not files. The same inputs give the same parts on every machine.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ml.specs.job import Split


class Part(IntEnum):
    """A row's part."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


_PARTS = {"train": Part.TRAIN, "validation": Part.VALIDATION, "test": Part.TEST}


def split_rows(
    split: Split,
    seed: int,
    labels: Sequence[str | None],
    named: Sequence[str | None] | None,
    groups: Sequence[str | None] | None,
) -> NDArray[np.int8]:
    """Give each row its part.

    labels: the label of each row. named: the split column, or None. groups: the group column, or None.
    Returns (N,) parts. A part that `named` holds is taken from it; one that it lacks is drawn from its train rows.
    """
    parts = np.full(len(labels), Part.TRAIN, np.int8)
    if named is not None:
        parts[:] = [_PARTS[name] if name else Part.TRAIN for name in named]
    given = set(parts.tolist())
    wanted = {
        part: share
        for part, share in ((Part.VALIDATION, split.validation), (Part.TEST, split.test))
        if part not in given and share > 0
    }
    open_rows = np.flatnonzero(parts == Part.TRAIN)
    if not wanted or not len(open_rows):
        return parts
    generator = np.random.default_rng([seed, 0x5B11])
    if groups is not None:
        keys = _codes([groups[row] or row for row in open_rows.tolist()])  # a row without a group is its own
        for members in _shares_of_groups(keys, wanted, generator).items():
            parts[open_rows[members[1]]] = members[0]
        return parts
    pools = [open_rows]
    if split.stratify:
        codes = _codes([labels[row] for row in open_rows.tolist()])
        pools = [open_rows[codes == code] for code in np.unique(codes)]
    _draw(parts, pools, wanted, generator)
    return parts


def _codes(values: Sequence[object]) -> NDArray[np.int64]:
    """A number for each value, in the order of their first appearance: an array of long texts would fill memory."""
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], np.int64)


def _draw(
    parts: NDArray[np.int8], pools: list[NDArray[np.int64]], wanted: dict[Part, float], generator: np.random.Generator
) -> None:
    """Draw each part's share out of each pool.

    What rounding leaves over is carried from pool to pool, so that the totals come out right and many small pools
    don't all round to nothing. A pool always keeps a row to train on.
    """
    carried = dict.fromkeys(wanted, 0.0)
    for pool in pools:
        shuffled, start = generator.permutation(pool), 0
        for part, share in wanted.items():
            carried[part] += share * len(pool)
            count = min(int(carried[part] + 0.5), len(pool) - 1 - start)
            carried[part] -= count
            parts[shuffled[start : start + count]] = part
            start += count


def _shares_of_groups(
    keys: NDArray[np.int64], wanted: dict[Part, float], generator: np.random.Generator
) -> dict[Part, NDArray[np.int64]]:
    names, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order, start = generator.permutation(len(names)), 0
    chosen: dict[Part, NDArray[np.int64]] = {}
    for part, share in wanted.items():
        taken = np.cumsum(counts[order[start:]])
        end = start + min(int(np.searchsorted(taken, share * len(keys), "right")), len(order) - 1 - start)
        chosen[part] = np.flatnonzero(np.isin(inverse, order[start:end]))
        start = end
    return chosen
