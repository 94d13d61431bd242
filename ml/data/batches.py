"""Which rows go together: optimizer steps of like-long rows, random in every epoch; and their cut into micro-batches.

It knows lengths and seeds, not texts or tensors.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

# Rows are shuffled, then sorted by length only within a pool of so many steps, and each length is blurred by up to this
# share: like lengths meet, yet every epoch pairs other rows, also where all rows fit one pool.
POOL_STEPS = 50
BLUR = 0.05


def plan_epoch(rows: Rows, lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[Rows]:
    """Divide the rows of an epoch into optimizer steps of `batch_size` rows (the last of a pool may be smaller).

    The plan depends on its arguments alone, so a resumed run finds the very same one.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(rows)
    steps: list[Rows] = []
    for start in range(0, len(shuffled), batch_size * POOL_STEPS):
        pool = shuffled[start : start + batch_size * POOL_STEPS]
        pool = by_blurred_length(pool, lengths, generator)
        # The odd rows go first, where they are shortest: the smaller step then costs least padding.
        odd = len(pool) % batch_size
        cuts = list(range(odd, len(pool), batch_size))
        steps += [part for part in np.split(pool, cuts) if len(part)]
    return [steps[i] for i in generator.permutation(len(steps))]


def by_blurred_length(rows: Rows, lengths: NDArray[np.int64], generator: np.random.Generator) -> Rows:
    """The same rows, about from the shortest to the longest."""
    blurred = lengths[rows] * generator.uniform(1 - BLUR, 1 + BLUR, len(rows))
    return rows[np.argsort(blurred, kind="stable")]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """How many steps `plan_epoch` makes."""
    return -(-rows // batch_size)


def cut_step(step: Rows, lengths: NDArray[np.int64], *, max_tokens: int, max_rows: int | None) -> Iterator[Rows]:
    """Cut a step into micro-batches: `max_rows` rows each, or as many as fit `max_tokens` when padded.

    A single row over the budget goes alone.
    """
    ordered = step[np.argsort(-lengths[step], kind="stable")]
    start = 0
    while start < len(ordered):
        fitting = max_rows or max(1, max_tokens // int(lengths[ordered[start]]))
        yield ordered[start : start + fitting]
        start += fitting
