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
    """Of N rows' adapters (1, r, …) the feeds of a pass: as they are where all rows have the same, else (N, r, …).

    Ranks r are padded to the largest with zeros, which add nothing. What is new is the thread's until it stacks again.
    """
    first = adapters[0]
    if all(adapter is first for adapter in adapters):
        return dict(first)
    columns = {name: [adapter[name] for adapter in adapters] for name in first}
    shapes = {
        name: (len(adapters), max(tensor.shape[1] for tensor in tensors), *tensors[0].shape[2:])
        for name, tensors in columns.items()
    }
    room, start, stacked = _room.take(sum(map(math.prod, shapes.values()))), 0, {}
    for name, tensors in columns.items():
        end = start + math.prod(shapes[name])
        stacked[name] = _fill(room[start:end], tensors).reshape(shapes[name])
        start = end
    return stacked


def _fill(out: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Copy each to the beginning of its share, as bytes: numpy would let other threads run between any two."""
    share = out.nbytes // len(tensors)
    if not share:
        return out
    content = out.data.cast("B")
    for start, tensor in zip(range(0, out.nbytes, share), tensors, strict=True):
        end = start + tensor.nbytes
        if tensor.nbytes:  # else there is no view of it
            content[start:end] = tensor.data.cast("B")
        content[end : start + share] = bytes(start + share - end)
    return out
