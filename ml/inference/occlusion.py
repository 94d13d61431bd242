"""Which words an answer rests on: the text again, each time without one of them (Zeiler and Fergus 2014, of images).

It knows no tasks and runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding

from ml.artifact.tokenizer import Tokens


@dataclass(frozen=True)
class Word:
    """A word of a text, or of the first or second of a pair, as the tokenizer splits them."""

    sequence: int  # 0, or 1 in the second text of a pair
    start: int  # in characters
    end: int
    positions: Sequence[int]  # of its tokens


def find_words(encoding: Encoding) -> list[Word]:
    """The words that an encoding holds, in their order. It must know where in the text its tokens stand."""
    positions: dict[tuple[int, int], list[int]] = {}
    for position, word in enumerate(encoding.word_ids):
        sequence = encoding.token_to_sequence(position)
        if word is not None and sequence is not None:
            positions.setdefault((sequence, word), []).append(position)
    offsets = encoding.offsets
    return [
        Word(sequence, min(offsets[place][0] for place in places), max(offsets[place][1] for place in places), places)
        for (sequence, _), places in positions.items()
    ]


def leave_out(encoding: Encoding, word: Word) -> Tokens:
    """The tokens without those of a word."""
    left_out = set(word.positions)
    kept = [position for position in range(len(encoding)) if position not in left_out]
    ids, type_ids = encoding.ids, encoding.type_ids
    return Tokens([ids[position] for position in kept], [type_ids[position] for position in kept])
