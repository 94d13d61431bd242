"""Training rows changed each time they are taken: tokens masked, words moved, rows mixed with others of their step.

All of it is drawn from the run's seed and the number of the step, so a run that goes on draws the same. It works on
token ids, and on the words they are of: a changed text holds no id that the row did not hold, but for the mask's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.data.batches import Rows
from ml.data.tokens import TokenTable
from ml.specs.augmentation import Augmentation, Eda, Mask, Operation

Word = NDArray[np.int64]  # where its tokens stand in the row


@dataclass(frozen=True)
class Mixture:
    """Of each row of a step, which other one it is mixed with, by its place there, and how much it keeps of itself."""

    partners: Rows  # (B,)
    shares: NDArray[np.float64]  # (B,)


class MixedTable:
    """The rows of a table, each laid over its partner.

    The longer of the two decides the length, and a row attends wherever either has a token. Where one has none, its
    word embedding is zero, and the other's id and type stand.
    """

    def __init__(self, tokens: TokenTable, mixture: Mixture) -> None:
        self._tokens, self._mixture = tokens, mixture
        self.lengths = self.widths = np.maximum(tokens.lengths, tokens.lengths[mixture.partners])

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The inputs of a `TokenTable`, other_ids (B, L) int64, and shares (B, L, 2) float32 of the two words."""
        both = self._tokens.inputs_of(np.concatenate([rows, self._mixture.partners[rows]]))
        own = {name: tensor[: len(rows)] for name, tensor in both.items()}
        other = {name: tensor[len(rows) :] for name, tensor in both.items()}
        is_own = own["attention_mask"].bool()
        kept = torch.from_numpy(self._mixture.shares[rows]).float()[:, None]  # (B, 1)
        shares = torch.stack([kept * own["attention_mask"], (1 - kept) * other["attention_mask"]], -1)
        laid_over = {name: torch.where(is_own, own[name], other[name]) for name in both}
        return {**laid_over, "other_ids": other["input_ids"], "shares": shares}


@dataclass(frozen=True)
class Augmented:
    """The rows of a step as they were changed, by their places in it."""

    examples: TokenTable | MixedTable
    mixture: Mixture | None


class Augmenter:
    """Changes the rows of a step."""

    def __init__(
        self, specs: Sequence[Augmentation], tokens: TokenTable, *, mask_id: int | None, max_length: int, seed: int
    ) -> None:
        """tokens: with the `words` of `word_arrays` beside them, for all but mixup. max_length: of a changed row."""
        self._specs, self._tokens = specs, tokens
        self._mask_id, self._max_length, self._seed = mask_id, max_length, seed

    def augment(self, rows: Rows, step: int) -> Augmented:
        """The rows of the step of this number, counted over all epochs."""
        generator = np.random.default_rng([self._seed, step, 0xA06])
        arrays, mixture = self._tokens.take(rows), None
        for spec in self._specs:
            if isinstance(spec, Mask):
                assert self._mask_id is not None, "a mask without a token for it is refused"
                is_hidden = (arrays["words"] != 0) & (generator.random(len(arrays["words"])) < spec.probability)
                arrays["ids"] = np.where(is_hidden, self._mask_id, arrays["ids"])
            elif isinstance(spec, Eda):
                arrays = _edit(spec, arrays, self._max_length, generator)
            else:
                partners = generator.permutation(len(rows))
                mixture = Mixture(partners, generator.beta(spec.alpha, spec.alpha, len(rows)))
        tokens = TokenTable(arrays, pad_id=self._tokens.pad_id)
        return Augmented(tokens if mixture is None else MixedTable(tokens, mixture), mixture)


# ---------------------------------------------------------------------------------------------------------------- words


def _edit(
    spec: Eda, arrays: dict[str, NDArray[Any]], max_length: int, generator: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Flat arrays of rows, with the words of each row changed; a row grows to `max_length` tokens at most."""
    ends = np.cumsum(arrays["lengths"])
    rows = [
        start + edit_words(words, spec, max_length - len(words), generator)
        for start, words in zip(ends - arrays["lengths"], np.split(arrays["words"], ends[:-1]), strict=True)
    ]
    places = np.concatenate(rows)
    flat = {name: array[places] for name, array in arrays.items() if name != "lengths"}
    return {"lengths": np.array([len(row) for row in rows], np.int64), **flat}


def edit_words(words: NDArray[np.int8], spec: Eda, room: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Where each token of a changed row stands in the row as it was; each of its texts is changed by itself.

    words: (L,) as `word_arrays` makes them. room: tokens that the row may grow by.
    """
    starts = np.flatnonzero(words >= 0)
    pieces: list[Word] = np.split(np.arange(len(words)), starts[1:])  # words, and special tokens
    texts = words[starts]
    for text in (2, 1):  # the second before the first, which moves it
        places = np.flatnonzero(texts == text)
        if len(places):
            whole = slice(places[0], places[-1] + 1)
            operation = spec.operations[generator.integers(len(spec.operations))]
            changed = _operate(operation, pieces[whole], spec.alpha, room, generator)
            room -= sum(map(len, changed)) - sum(map(len, pieces[whole]))
            pieces[whole] = changed
    return np.concatenate(pieces)


def _operate(
    operation: Operation, words: list[Word], alpha: float, room: int, generator: np.random.Generator
) -> list[Word]:
    if operation == "deletion":
        is_kept = generator.random(len(words)) >= alpha
        is_kept[generator.integers(len(words))] |= not is_kept.any()  # one word always stays
        return [word for word, kept in zip(words, is_kept, strict=True) if kept]
    words = list(words)
    for _ in range(max(1, int(alpha * len(words)))):
        one = generator.integers(len(words))
        if operation == "swap":
            other = (one + generator.integers(1, max(2, len(words)))) % len(words)  # another, if there is one
            words[one], words[other] = words[other], words[one]
        elif len(words[one]) <= room:
            room -= len(words[one])
            words.insert(generator.integers(len(words) + 1), words[one])
    return words
