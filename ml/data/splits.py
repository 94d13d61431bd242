"""Rows to train, validation and test parts: by the dataset's own column where it has one, else drawn by the seed;
or to folds, each of which is a test part once.

It knows values, not files. The same inputs give the same parts on every machine.
"""

from collections.abc import Sequence
from enum import IntEnum
from heapq import heapify, heapreplace

import numpy as np
from numpy.typing import NDArray

from ml.specs.job import Split


class Part(IntEnum):
    """A row's part."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


# Of a row that a cross-validation leaves out: it is in no part.
LEFT_OUT = -1

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
    return _draw_missing(parts, split, seed, labels, groups)


def split_folds(
    split: Split,
    seed: int,
    count: int,
    labels: Sequence[str | None],
    named: Sequence[str | None] | None,
    groups: Sequence[str | None] | None,
) -> list[NDArray[np.int8]]:
    """Give each row its part in each run of a cross-validation; a fold is the test part of one run.

    The rows that `named` doesn't hold out as test are cut into `count` folds, the others are LEFT_OUT of every run.
    Each fold has the same number of rows, and of rows of a label, within one; groups stay whole, and then the folds
    are only about as large. Validation is drawn from a run's train rows, `split.validation` of them.
    Returns `count` times (N,) parts. There must be as many rows, and groups, as folds.
    """
    rows = np.arange(len(labels))
    if named is not None:
        rows = np.flatnonzero([name != "test" for name in named])
    generator = np.random.default_rng([seed, 0xF01D])
    if groups is not None:
        dealt = _deal_groups(_codes([groups[row] or row for row in rows.tolist()]), count, generator)
    else:
        # Shuffled, brought together by label where they are stratified, then dealt out like cards.
        order = generator.permutation(len(rows))
        if split.stratify:
            order = order[np.argsort(_codes([labels[row] for row in rows.tolist()])[order], kind="stable")]
        dealt = np.empty(len(rows), np.int64)
        dealt[order] = np.arange(len(rows)) % count
    runs = []
    for fold in range(count):
        parts = np.full(len(labels), LEFT_OUT, np.int8)
        parts[rows] = np.where(dealt == fold, Part.TEST, Part.TRAIN)
        runs.append(_draw_missing(parts, split, seed, labels, groups))
    return runs


def _deal_groups(keys: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each row (N,): whole groups, the largest first, each to the fold that has the fewest rows yet."""
    _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    folds = [(0, fold) for fold in range(count)]
    heapify(folds)
    of_group = np.empty(len(sizes), np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
        rows, fold = folds[0]
        of_group[group] = fold
        heapreplace(folds, (rows + int(sizes[group]), fold))
    return of_group[inverse]


def _draw_missing(
    parts: NDArray[np.int8], split: Split, seed: int, labels: Sequence[str | None], groups: Sequence[str | None] | None
) -> NDArray[np.int8]:
    """Draw the parts that have no rows yet from the train rows."""
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
