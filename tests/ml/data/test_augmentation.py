"""Changed rows: what changes and what never does, how much, and the same again wherever seed and step are the same."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from ml.artifact.tokenizer import Text
from ml.data.augmentation import Augmented, Augmenter, MixedTable, edit_words
from ml.data.tokens import TokenTable, word_arrays
from ml.specs.augmentation import Augmentation, Eda
from tests.tiny_base import learnable_rows

LONGEST = 24
MASK, CLS, SEP = 4, 2, 3
TEXTS: list[Text] = [text for text, _ in learnable_rows(40)]
# Words of several pieces among them: the tiny vocabulary spells what it does not know.
PAIRS: list[Text] = [("where is zebra", "in the garden now"), ("", "money back"), ("xyz", ""), ("please", "hello van")]
WORDS = np.array([0, 1, -1, 1, 1, 0, 2, 2, -2, -2, 0], np.int8)


def marked(base: Path, texts: list[Text]) -> TokenTable:
    (words,) = word_arrays(base, [texts], LONGEST)
    return TokenTable.of(base, texts, LONGEST, pad_id=0, has_types=True).beside(words)


def augmenter(tokens: TokenTable, *ways: Any, seed: int = 1, max_length: int = LONGEST) -> Augmenter:
    specs = [TypeAdapter[Augmentation](Augmentation).validate_python(way) for way in ways]
    return Augmenter(specs, tokens, mask_id=MASK, max_length=max_length, seed=seed)


def ids_of(augmented: Augmented) -> list[list[int]]:
    """Of each row."""
    examples = augmented.examples
    return [examples.inputs_of(np.array([row]))["input_ids"][0].tolist() for row in range(len(examples.lengths))]


@pytest.fixture(scope="module")
def tokens(tiny_base: Path) -> TokenTable:
    return marked(tiny_base, TEXTS)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_base / "tokenizer.json"))


def test_pieces_are_known_by_the_word_and_the_text_they_are_of(tiny_base: Path, tokenizer: Tokenizer) -> None:
    (arrays,) = word_arrays(tiny_base, [PAIRS[:1]], LONGEST)
    marks = arrays["words"].tolist()
    assert tokenizer.encode(*PAIRS[0]).tokens[3:8] == ["z", "##e", "##b", "##r", "##a"]
    assert marks == [0, 1, 1, 1, -1, -1, -1, -1, 0, 2, 2, 2, 2, 0]


# ----------------------------------------------------------------------------------------------------------------- mask


def test_about_as_many_tokens_are_masked_as_asked_and_never_a_special_one(tokens: TokenTable) -> None:
    rows = np.arange(40)
    before = np.concatenate([tokens.take(np.array([row]))["ids"] for row in rows])
    hidden = np.zeros(len(before))
    for step in range(50):
        after = np.concatenate(ids_of(augmenter(tokens, {"type": "mask", "probability": 0.3}).augment(rows, step)))
        assert ((after == before) | (after == MASK)).all()
        hidden += after == MASK
    is_special = np.isin(before, [CLS, SEP])
    assert not hidden[is_special].any()
    assert hidden[~is_special].mean() / 50 == pytest.approx(0.3, abs=0.02)


# ------------------------------------------------------------------------------------------------------------------ eda


def edits(operations: list[Any], alpha: float = 0.3, room: int = 100) -> Iterator[list[int]]:
    """Many changes of WORDS."""
    spec = Eda(type="eda", alpha=alpha, operations=operations)
    for seed in range(200):
        yield edit_words(WORDS, spec, room, np.random.default_rng(seed)).tolist()


def text_of(order: list[int], first: int, last: int) -> list[int]:
    return [place for place in order if first <= place <= last]


@pytest.mark.parametrize("operation", ["swap", "deletion", "insertion"])
def test_words_stay_whole_and_in_their_text_and_special_tokens_where_they_are(operation: str) -> None:
    for order in edits([operation]):
        first, second = text_of(order, 1, 4), text_of(order, 6, 9)
        assert order == [0, *first, 5, *second, 10]
        assert first and second
        for head, rest in ((1, [2]), (7, [8, 9])):
            for at in (i for i, place in enumerate(order) if place == head):
                assert order[at + 1 : at + 1 + len(rest)] == rest
        counts = Counter(order)
        assert all(counts[head] == counts[rest] for head, rest in ((1, 2), (7, 8), (7, 9)))


def test_a_swap_exchanges_two_words_of_each_text() -> None:
    seen = set()
    for order in edits(["swap"], alpha=0.01):
        assert sorted(order) == list(range(11))
        assert text_of(order, 6, 9) == [7, 8, 9, 6]
        seen.add(tuple(text_of(order, 1, 4)))
    assert seen == {(3, 1, 2, 4), (4, 3, 1, 2), (1, 2, 4, 3)}


def test_deletion_leaves_out_as_many_words_as_asked_but_never_the_last_one() -> None:
    kept = [order.count(place) for order in edits(["deletion"], alpha=0.3) for place in (1, 3, 4)]
    assert np.mean(kept) == pytest.approx(0.7 + 0.3**3 / 3, abs=0.05)
    assert all(text_of(order, 1, 4) and text_of(order, 6, 9) for order in edits(["deletion"], alpha=0.99))


def test_insertion_repeats_words_of_the_text_where_there_is_room() -> None:
    for order in edits(["insertion"], alpha=0.01):
        assert len(set(order)) == 11
        assert len(text_of(order, 1, 4)) in (5, 6)
        assert len(text_of(order, 6, 9)) in (5, 7)
    for room in (0, 1, 2):
        assert max(len(order) for order in edits(["insertion"], 0.9, room)) == 11 + room


def test_rows_of_no_word_stay_as_they_are() -> None:
    spec = Eda(type="eda")
    assert edit_words(np.zeros(2, np.int8), spec, 10, np.random.default_rng(1)).tolist() == [0, 1]


def test_a_row_of_a_step_has_its_own_words_types_and_length(tiny_base: Path, tokenizer: Tokenizer) -> None:
    table = marked(tiny_base, PAIRS)
    for step in range(20):
        changed = augmenter(table, {"type": "eda", "alpha": 0.4}).augment(np.array([3, 0]), step)
        for place, row in enumerate((3, 0)):
            inputs = changed.examples.inputs_of(np.array([place]))
            ids, types = inputs["input_ids"][0], inputs["token_type_ids"][0]
            assert changed.examples.lengths[place] == len(ids)
            for side, text in enumerate(PAIRS[row]):
                own = ids[(types == side) & (ids != CLS) & (ids != SEP)].tolist()
                assert own
                assert set(own) <= set(tokenizer.encode(text).ids)


def test_no_row_grows_past_the_maximum(tokens: TokenTable) -> None:
    longest = int(tokens.lengths.max())
    way = {"type": "eda", "alpha": 0.9, "operations": ["insertion"]}
    changed = augmenter(tokens, way, max_length=longest).augment(np.arange(40), 0).examples
    assert changed.lengths.max() == longest
    assert (changed.lengths >= tokens.lengths).all()


# ---------------------------------------------------------------------------------------------------------------- mixup


def test_a_mixed_row_is_as_long_as_the_longer_one_and_holds_both(tokens: TokenTable) -> None:
    changed = augmenter(tokens, {"type": "mixup", "alpha": 1}).augment(np.arange(40), 7)
    mixture = changed.mixture
    assert mixture is not None
    assert sorted(mixture.partners) == list(range(40))
    assert ((mixture.shares > 0) & (mixture.shares < 1)).all()
    for row, (partner, share) in enumerate(zip(mixture.partners, mixture.shares, strict=True)):
        own, other = (tokens.take(np.array([one]))["ids"].tolist() for one in (row, partner))
        inputs = changed.examples.inputs_of(np.array([row]))
        length = max(len(own), len(other))
        assert changed.examples.lengths[row] == length
        assert inputs["attention_mask"].tolist() == [[1] * length]
        assert inputs["input_ids"][0].tolist() == own + other[len(own) :]
        assert inputs["other_ids"][0].tolist() == other + [0] * (length - len(other))
        weights = torch.zeros(length, 2)
        weights[: len(own), 0], weights[: len(other), 1] = share, 1 - share
        torch.testing.assert_close(inputs["shares"][0], weights)


def test_rows_that_are_mixed_together_are_padded_and_masked(tokens: TokenTable) -> None:
    table = augmenter(tokens, "mixup").augment(np.arange(40), 7).examples
    together = table.inputs_of(np.arange(40))
    for row in range(40):
        alone = table.inputs_of(np.array([row]))
        length = alone["input_ids"].shape[1]
        for name, tensor in together.items():
            assert torch.equal(tensor[row, :length], alone[name][0])
        assert not together["attention_mask"][row, length:].any()
        assert not together["shares"][row, length:].any()


# ---------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("ways", [["mask"], ["eda"], ["mixup"], ["eda", "mask", "mixup"]], ids="-".join)
def test_draws_depend_on_seed_and_step_and_on_nothing_else(tokens: TokenTable, ways: list[str]) -> None:
    def drawn(seed: int, step: int, *before: int) -> tuple[Any, ...]:
        one = augmenter(tokens, *ways, seed=seed)
        for other in before:
            one.augment(np.arange(10), other)
        changed = one.augment(np.arange(5, 40), step)
        mixture = None if changed.mixture is None else changed.mixture.shares.tolist()
        return ids_of(changed), mixture, type(changed.examples) is MixedTable

    np.random.seed(3)
    once = drawn(1, 2)
    assert drawn(1, 2, 0, 1, 7) == once
    assert drawn(1, 3) != once
    assert drawn(2, 2) != once


def test_the_table_itself_never_changes(tokens: TokenTable) -> None:
    before = {name: array.copy() for name, array in tokens.take(np.arange(40)).items()}
    augmenter(tokens, "eda", "mask", "mixup").augment(np.arange(40), 1)
    for name, array in tokens.take(np.arange(40)).items():
        assert (array == before[name]).all()
