"""Texts as token ids, held flat; and micro-batches padded to their longest row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.artifact.tokenizer import Text, load_tokenizer, tokenize

Rows = NDArray[np.int64]
_TEXTS_AT_ONCE = 10_000


class TokenTable:
    """Rows of token ids, each as long as its text.

    `inputs_of(rows)` pads to the longest of those rows; padding is masked out, so a row's answer does not depend on
    its neighbours.
    """

    def __init__(self, folder: Path, texts: Sequence[Text], max_length: int, *, pad_id: int, has_types: bool) -> None:
        tokenizer = load_tokenizer(folder, max_length)
        ids, types, lengths = [], [], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for encoding in tokenize(tokenizer, texts[start : start + _TEXTS_AT_ONCE]):
                ids.append(np.array(encoding.ids, np.int32))
                types.append(np.array(encoding.type_ids, np.int8))
                lengths.append(len(encoding.ids))
        self._ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        self._types = np.concatenate(types) if has_types and types else None
        self.has_types = has_types
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.pad_id = pad_id
        self.lengths = np.array(lengths, np.int64)  # (N,) tokens of each row

    def like(self, folder: Path, texts: Sequence[Text], max_length: int) -> "TokenTable":
        """Other texts, for the same network."""
        return TokenTable(folder, texts, max_length, pad_id=self.pad_id, has_types=self.has_types)

    def used_ids(self) -> NDArray[np.int64]:
        """The ids that occur, padding among them, ascending."""
        return np.union1d(self._ids, [self.pad_id]).astype(np.int64)

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The network's inputs for these rows, each (B, L) int64."""
        longest = int(self.lengths[rows].max())
        ids = np.full((len(rows), longest), self.pad_id, np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for i, row in enumerate(rows):
            start, end = self._starts[row], self._starts[row + 1]
            ids[i, : end - start] = self._ids[start:end]
            mask[i, : end - start] = 1
            if self._types is not None:
                types[i, : end - start] = self._types[start:end]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if self._types is not None:
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs


class FeatureTable:
    """Rows that were encoded once: (N, D) float32. A row costs one unit, whatever its text."""

    def __init__(self, features: Tensor) -> None:
        self._features = features
        self.lengths = np.ones(len(features), np.int64)

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The head's input for these rows: (B, D)."""
        return {"features": self._features[torch.from_numpy(rows)]}
