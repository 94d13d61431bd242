"""A text that is longer than a network reads: windows of its tokens, and their outputs as one. It knows no tasks."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ml.artifact.tokenizer import Tokens

Pooling = Literal["mean", "max"]


def cut(encoding: Encoding, overlap: int) -> Iterator[Encoding | Tokens]:
    """Windows as long as the cut encoding of a single text; the last ends where the text does. One that wasn't cut is
    its only window.

    overlap: tokens of the text that neighbours share, fewer than a window holds; the last two may share more.
    """
    rest = encoding.overflowing
    if not rest:
        yield encoding
        return
    own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    first, end = int(own[0]), int(own[-1]) + 1  # the tokens of the text, between the special ones
    trailing = len(encoding) - end
    text = [token for piece in (encoding, *rest) for token in piece.ids[first : len(piece) - trailing]]
    before, after, width = encoding.ids[:first], encoding.ids[end:], end - first
    for start in (*range(0, len(text) - width, width - overlap), len(text) - width):
        yield Tokens([*before, *text[start : start + width], *after], encoding.type_ids)


def pool(rows: NDArray[np.floating[Any]], counts: Sequence[int], pooling: Pooling) -> NDArray[np.float64]:
    """(R, S) to (N, S): each column over the rows of a text. counts: the rows of each of the N texts, 1 or more."""
    starts = np.cumsum([0, *counts[:-1]])
    if pooling == "max":
        return np.maximum.reduceat(rows.astype(np.float64), starts)
    return np.asarray(np.add.reduceat(rows.astype(np.float64), starts) / np.array(counts)[:, None])
