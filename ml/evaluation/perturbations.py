"""Texts as careless hands would have written them: what a model should not mind. Any script; pure functions of a draw.

typo: noise in a share of the words, by four operations on letters (Karpukhin et al. 2019, Training on Synthetic Noise
Improves Robustness to Natural Noise in Machine Translation).
"""

import re

import numpy as np

from ml.specs.bulk import Perturbation

TYPO_WORDS = 0.1  # share of the words that get one
LOST_GAPS = 0.1  # share of the gaps between words that are lost
GAPS = (" ", "  ", "\t", "\n")

_GAP = re.compile(r"(\s+)")
_NUMBERS: dict[Perturbation, int] = {"typo": 1, "case": 2, "whitespace": 3}  # each draws by itself


def perturb(text: str, kind: Perturbation, chance: np.random.Generator) -> str:
    """A text changed in one way; as it was where it has nothing to change, as a script without cases."""
    return {"typo": _mistype, "case": _recase, "whitespace": _respace}[kind](text, chance)


def draws(kind: Perturbation, seed: int, row: int) -> np.random.Generator:
    """The draws for a row: the same whatever other rows there are."""
    return np.random.default_rng([seed, _NUMBERS[kind], row])


def _mistype(text: str, chance: np.random.Generator) -> str:
    """A tenth of the words are mistyped, one at least. New letters are taken from the text, and so from its script."""
    pieces = _GAP.split(text)
    places = [place for place, piece in enumerate(pieces) if piece.strip()]
    if not places:
        return text
    letters = sorted(set(text) - set(" \t\n\r"))
    is_hit = chance.random(len(places)) < TYPO_WORDS
    is_hit[chance.integers(len(places))] |= not is_hit.any()
    for place in np.array(places)[is_hit]:
        pieces[place] = _mistype_word(pieces[place], letters[chance.integers(len(letters))], chance)
    return "".join(pieces)


def _mistype_word(word: str, letter: str, chance: np.random.Generator) -> str:
    at, operation = int(chance.integers(len(word))), int(chance.integers(4 if len(word) > 1 else 2))
    if operation == 0:  # put in
        return word[:at] + letter + word[at:]
    if operation == 1:  # exchanged
        return word[:at] + letter + word[at + 1 :]
    if operation == 2:  # left out
        return word[:at] + word[at + 1 :]
    at = min(at, len(word) - 2)  # changed places with the next
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _recase(text: str, chance: np.random.Generator) -> str:
    others = [other for other in (text.lower(), text.upper(), text.title()) if other != text]
    return others[chance.integers(len(others))] if others else text


def _respace(text: str, chance: np.random.Generator) -> str:
    pieces = _GAP.split(text)
    for place in range(1, len(pieces), 2):
        is_lost = chance.random() < LOST_GAPS
        pieces[place] = "" if is_lost else GAPS[chance.integers(len(GAPS))]
    return " " + "".join(pieces) + " "
