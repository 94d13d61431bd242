"""The adapters of a pass: what each row brings along into a network that it shares with other models' rows."""

import math
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[np.float32]
Adapter = Mapping[str, Tensor]  # by the network's inputs, (1, …) each; of a model that has none, empty

# A thread keeps so many numbers, 64 MB, from one pass to the next: memory that is new takes as long to get as to fill.
_KEPT_NUMBERS = 1 << 24


class _Room(threading.local):
    """Where a thread stacks the adapters of its passes."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.float32)

    def take(self, count: int) -> Tensor:
        """(count,), of any content, until the thread takes again."""
        if count > len(self._numbers):
            room = np.empty(count, np.float32)
            if count > _KEPT_NUMBERS:
                return room
            self._numbers = room
        return self._numbers[:count]


_room = _Room()


def stack_adapters(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Of N rows' adapters (1, …) the feeds of a pass: as they are where all rows have the same, else (N, …).

    Ranks are padded to the largest: a row or column of zeros adds nothing. What is new is the thread's until it stacks
    again.
    """
    first = adapters[0]
    if all(adapter is first for adapter in adapters):
        return dict(first)
    stacked, columns = {}, {name: [adapter[name] for adapter in adapters] for name in first}
    shapes = {
        name: (len(adapters), *map(max, zip(*(one.shape[1:] for one in tensors), strict=True)))
        for name, tensors in columns.items()
    }
    room, start = _room.take(sum(map(math.prod, shapes.values()))), 0
    for name, tensors in columns.items():
        end = start + math.prod(shapes[name])
        stacked[name] = _fill(room[start:end].reshape(shapes[name]), tensors)
        start = end
    return stacked


def _fill(out: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    if all(tensor.shape[1:] == out.shape[1:] for tensor in tensors):
        return np.concatenate(tensors, out=out)
    out[:] = 0
    for row, tensor in zip(out, tensors, strict=True):
        row[tuple(map(slice, tensor.shape[1:]))] = tensor[0]
    return out
