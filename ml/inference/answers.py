"""Logits that were computed before, by model and tokens, as many as their bytes allow. Those not used longest go first.

It knows no texts, tasks or options: those read the logits anew.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ml.inference.classifier import Logits, Row

# What an entry takes beside its numbers: 236 measured by tracemalloc, and what the allocator rounds up.
ENTRY_BYTES = 300


class AnswerCache:
    """Logits (C,) of rows. It may be used by several threads at once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._logits: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """About the memory that it holds."""
        return self._bytes

    def look_up(self, model_id: str, rows: Sequence[Row]) -> "LookUp":
        """What is known of a model's rows."""
        keys = [_key(model_id, row) for row in rows]
        known: dict[int, NDArray[np.float32]] = {}
        with self._lock:
            for place, key in enumerate(keys):
                if (logits := self._logits.get(key)) is not None:
                    self._logits.move_to_end(key)
                    known[place] = logits
        return LookUp(self, keys, known, rows)

    def keep(self, keys: Sequence[bytes], logits: Logits) -> None:
        """Remember logits (N, C) under N keys."""
        with self._lock:
            for key, row in zip(keys, logits, strict=True):
                if key not in self._logits:
                    self._logits[key] = row.copy()  # of its own, or it would hold all of its request
                    self._bytes += row.nbytes + ENTRY_BYTES
            while self._bytes > self._max_bytes:
                _, dropped = self._logits.popitem(last=False)
                self._bytes -= dropped.nbytes + ENTRY_BYTES


class LookUp:
    """The rows of one request: those that are known, and those that must be run."""

    def __init__(
        self, cache: AnswerCache, keys: Sequence[bytes], known: dict[int, NDArray[np.float32]], rows: Sequence[Row]
    ) -> None:
        self._cache, self._keys, self._known = cache, keys, known
        self.cached = len(known)  # rows
        self._places = [place for place in range(len(rows)) if place not in known]
        self.missing = [rows[place] for place in self._places]

    def complete(self, logits: Logits | None) -> Logits:
        """The logits of all rows (N, C), in their order. logits: of the missing ones (M, C), which are remembered."""
        if logits is not None:
            self._cache.keep([self._keys[place] for place in self._places], logits)
            self._known |= dict(zip(self._places, logits, strict=True))
        return np.stack([self._known[place] for place in range(len(self._keys))])


def _key(model_id: str, row: Row) -> bytes:
    """Of a model and the tokens that it would read; a digest of 128 bits, which nobody finds two texts for."""
    tokens = np.array([row.ids, row.type_ids], np.int32).tobytes()
    return blake2b(tokens, digest_size=16, key=model_id.encode()[:64]).digest()
