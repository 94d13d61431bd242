"""What a pass through a network takes, measured: by it the scheduler tells how many rows may go together."""

import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", bound=Sized)

# A load measures each shape twice, and again while this time lasts.
MEASURING_SECONDS = 0.1
_LEAST_REPEATS, _MOST_REPEATS = 2, 5


@dataclass(frozen=True)
class PassCost:
    """Seconds of one pass over rows padded to the longest: fixed + rows · (token · longest + square · longest²)."""

    fixed: float
    token: float
    square: float

    def seconds(self, rows: int, longest: int) -> float:
        """longest: in tokens."""
        return self.fixed + rows * longest * (self.token + self.square * longest)

    def share(self, lengths: Iterable[int], passes: int) -> float:
        """Of each of so many passes, among which rows that need no padding are shared out evenly."""
        return self.fixed + sum(length * (self.token + self.square * length) for length in lengths) / passes


def measure_cost(forward: Callable[[Sequence[Item]], object], items: Sequence[Item]) -> PassCost:
    """Time a few passes over copies of the shortest, the middle and the longest item, and fit the cost to them.

    Whatever else the machine does makes a pass longer, never shorter, so the fastest of a shape's passes counts.
    """
    by_length = sorted(items, key=len)
    short, middle, long = by_length[0], by_length[len(by_length) // 2], by_length[-1]
    batches = [[short], [middle], [middle] * 8, [long]]
    fastest = np.full(len(batches), np.inf)
    give_up_at = time.perf_counter() + MEASURING_SECONDS
    for repeat in range(_MOST_REPEATS):
        for i, batch in enumerate(batches):
            if repeat >= _LEAST_REPEATS and time.perf_counter() > give_up_at:
                break
            begun = time.perf_counter()
            forward(batch)
            fastest[i] = min(fastest[i], time.perf_counter() - begun)
    return fit_cost([(len(batch), len(batch[0])) for batch in batches], fastest)


def fit_cost(shapes: Sequence[tuple[int, int]], seconds: NDArray[np.float64]) -> PassCost:
    """The cost that shapes (rows, longest) took, the first of them one short row: by least squares of the relative
    error, over what each took more than that one. At least half of what that one took is fixed, so that no noise makes
    rows look dear to put together; and no term is negative.
    """
    sizes = np.array([(rows * longest, rows * longest**2) for rows, longest in shapes], np.float64)
    terms = (sizes - sizes[0]) / seconds[:, None]
    more = np.maximum(seconds - seconds[0], 0) / seconds
    token, square = np.linalg.lstsq(terms, more)[0]
    if square < 0:
        token, square = np.linalg.lstsq(terms[:, :1], more)[0].item(), 0.0
    elif token < 0:
        token, square = 0.0, np.linalg.lstsq(terms[:, 1:], more)[0].item()
    fixed = max(seconds[0] - sizes[0] @ (token, square), seconds[0] / 2)
    return PassCost(float(fixed), float(token), float(square))
