"""Texts as token ids, held flat; and micro-batches padded to their longest row."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding
from torch import Tensor

from ml.artifact.tokenizer import Text, load_tokenizer, tokenize, tokenize_with_places
from ml.data.cache import Arrays

Rows = NDArray[np.int64]
_IDS_AT_ONCE = 1 << 20


def token_arrays(
    folder: Path, texts: Iterable[Sequence[Text]], max_length: int, *, has_types: bool
) -> Iterator[Arrays]:
    """Tokenize texts that come some at a time: ids and, for a model that has them, types, flat; and lengths."""
    tokenizer = load_tokenizer(folder, max_length)
    for some in texts:
        encodings = tokenize(tokenizer, some)
        arrays = {
            "ids": np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings]),
            "lengths": np.array([len(encoding.ids) for encoding in encodings], np.int64),
        }
        if has_types:
            arrays["types"] = np.concatenate([np.array(encoding.type_ids, np.int8) for encoding in encodings])
        yield arrays


def word_arrays(folder: Path, texts: Iterable[Sequence[Text]], max_length: int) -> Iterator[Arrays]:
    """Of each token of `token_arrays`, which text's word it is of.

    words: int8, flat: 0 a special token, 1 the first text, 2 the second; negative where a token goes on with a word.
    """
    tokenizer = load_tokenizer(folder, max_length)
    for some in texts:
        yield {"words": np.concatenate([_words_of(encoding) for encoding in tokenize_with_places(tokenizer, some)])}


def _words_of(encoding: Encoding) -> NDArray[np.int8]:
    texts = np.nan_to_num(np.array(encoding.sequence_ids, np.float64) + 1).astype(np.int8)  # None becomes NaN
    words = np.array(encoding.word_ids, np.float64)
    goes_on = (words[1:] == words[:-1]) & (texts[1:] == texts[:-1])
    texts[1:][goes_on] *= -1
    return texts


class TokenTable:
    """Rows of token ids, each as long as its text.

    `inputs_of(rows)` pads to the widest of those rows; padding is masked out, so a row's answer does not depend on
    its neighbours.
    """

    def __init__(self, arrays: Arrays, *, pad_id: int) -> None:
        """arrays: as `token_arrays` makes them, joined; they may be memory-mapped."""
        self._flat = {name: array for name, array in arrays.items() if name != "lengths"}
        self._ids = arrays["ids"]
        self._types = arrays.get("types")
        self.lengths = np.array(arrays["lengths"])  # (N,) tokens of each row
        self.widths = self.lengths  # (N,) what a row is padded to at least
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.pad_id = pad_id

    @classmethod
    def of(cls, folder: Path, texts: Sequence[Text], max_length: int, *, pad_id: int, has_types: bool) -> "TokenTable":
        """A few texts, in memory."""
        (arrays,) = token_arrays(folder, [texts], max_length, has_types=has_types)
        return cls(arrays, pad_id=pad_id)

    def like(self, folder: Path, texts: Sequence[Text], max_length: int) -> "TokenTable":
        """Other texts, for the same network."""
        return TokenTable.of(folder, texts, max_length, pad_id=self.pad_id, has_types=self._types is not None)

    def beside(self, arrays: Arrays) -> "TokenTable":
        """The same rows, with further flat arrays."""
        return TokenTable({"lengths": self.lengths, **self._flat, **arrays}, pad_id=self.pad_id)

    def take(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """The arrays of some rows, in the order given."""
        _, places = self.places(rows)
        return {"lengths": self.lengths[rows], **{name: array[places] for name, array in self._flat.items()}}

    def in_buckets(self, most: int) -> Self:
        """The same rows, padded to at most so many different lengths."""
        table = copy(self)
        table.widths = bucketed(self.lengths, most)
        return table

    def used_ids(self) -> NDArray[np.int64]:
        """The ids that occur, padding among them, ascending."""
        seen = np.zeros(max(int(self._ids.max(initial=0)), self.pad_id) + 1, bool)
        seen[self.pad_id] = True
        for start in range(0, len(self._ids), _IDS_AT_ONCE):
            seen[self._ids[start : start + _IDS_AT_ONCE]] = True
        return np.flatnonzero(seen)

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The network's inputs for these rows, each (B, L) int64."""
        is_real, places = self.places(rows)
        ids = np.full(is_real.shape, self.pad_id, np.int64)
        ids[is_real] = self._ids[places]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(is_real.astype(np.int64))}
        if self._types is not None:
            types = np.zeros_like(ids)
            types[is_real] = self._types[places]
            inputs["token_type_ids"] = torch.from_numpy(types)
        return inputs

    def places(self, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of the padded places hold a token (B, L), and where each stands in the flat arrays, row after row."""
        lengths = self.lengths[rows]
        columns = np.arange(self.widths[rows].max())
        is_real = columns < lengths[:, None]
        # A loop took 220 µs for 32 rows of like length and 2,100 µs for 256; this takes 30 and 600 (one core).
        return is_real, (self._starts[rows][:, None] + columns)[is_real]


def bucketed(lengths: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Each length rounded up to one of at most `most`, those that add the least padding in all.

    They are multiples of 8, which units for matrix products like, but for the longest: no base need read more.
    """
    rounded = np.minimum(-(-lengths // 8) * 8, lengths.max())
    ends, rows = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(rows)])  # rows shorter than the i-th end
    # padded[i]: the fewest tokens that the rows below end i can be padded to; cuts: where their last bucket begins.
    padded, cuts = np.where(below > 0, np.inf, 0.0), []
    for _ in range(most):
        tried = [padded[: i + 1] + (below[i + 1] - below[: i + 1]) * end for i, end in enumerate(ends)]
        cuts.append([0, *(int(each.argmin()) for each in tried)])
        padded = np.array([0.0, *(each.min() for each in tried)])
    edges, i = [], len(ends)
    for cut in reversed(cuts):
        if i:
            edges.append(ends[i - 1])
            i = cut[i]
    few = np.array(edges[::-1], np.int64)
    widths: NDArray[np.int64] = few[np.searchsorted(few, rounded)]
    return widths


class HiddenTable:
    """Rows whose tokens went through a network's lowest layers once, in the place of the tokens."""

    def __init__(self, tokens: TokenTable, hidden: NDArray[Any]) -> None:
        """hidden: (T, D), flat, as `as_array` makes it; it may be memory-mapped."""
        self._tokens, self._hidden = tokens, hidden
        self.lengths, self.widths = tokens.lengths, tokens.widths

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The network's inputs for these rows: hidden (B, L, D), 0 where it is padded, and attention_mask (B, L)."""
        is_real, places = self._tokens.places(rows)
        padded = np.zeros((*is_real.shape, self._hidden.shape[1]), self._hidden.dtype)
        padded[is_real] = self._hidden[places]
        hidden = torch.from_numpy(padded)
        return {
            "hidden": hidden.view(torch.bfloat16) if hidden.dtype == torch.int16 else hidden,
            "attention_mask": torch.from_numpy(is_real.astype(np.int64)),
        }


def as_array(hidden: Tensor) -> NDArray[Any]:
    """Any shape. numpy has no bfloat16: it becomes the int16 of the same bits."""
    array: NDArray[Any] = (hidden.view(torch.int16) if hidden.dtype == torch.bfloat16 else hidden).numpy()
    return array


class FeatureTable:
    """Rows that were encoded once: (N, D) float32. A row costs one unit, whatever its text."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self._features = features
        self.lengths = self.widths = np.ones(len(features), np.int64)

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The head's input for these rows: (B, D)."""
        return {"features": torch.from_numpy(self._features[rows])}
