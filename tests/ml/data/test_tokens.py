"""Texts as padded tensors: ids, mask and types as the tokenizer has them, and neighbours that count for nothing."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ml.artifact.tokenizer import Text
from ml.data.tokens import FeatureTable, TokenTable, bucketed, token_arrays
from ml.models.classifier import load_native
from tests.tiny_base import learnable_rows

TEXTS = ["hello", "where is my parcel today, please?", "", "Money BACK!", "a long text " * 20]
PAIRS: list[Text] = [("where is it", "in the garden"), ("hello", "money back please today"), ("", "x")]


def table(base: Path, texts: list[Text], *, pad_id: int = 0, has_types: bool = True) -> TokenTable:
    return TokenTable.of(base, texts, 16, pad_id=pad_id, has_types=has_types)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_base / "tokenizer.json"))


def test_rows_are_padded_to_the_longest_of_them_and_the_padding_is_masked(
    tiny_base: Path, tokenizer: Tokenizer
) -> None:
    tokens = table(tiny_base, list(TEXTS), pad_id=7)
    rows = np.array([3, 0, 1])
    inputs = tokens.inputs_of(rows)
    expected = [tokenizer.encode(TEXTS[row]).ids for row in rows]
    longest = max(map(len, expected))
    assert tokens.lengths[rows].tolist() == [len(ids) for ids in expected]
    for i, ids in enumerate(expected):
        assert inputs["input_ids"][i].tolist() == ids + [7] * (longest - len(ids))
        assert inputs["attention_mask"][i].tolist() == [1] * len(ids) + [0] * (longest - len(ids))
    assert not inputs["token_type_ids"].any()
    assert {tensor.dtype for tensor in inputs.values()} == {torch.int64}


def test_a_text_is_cut_at_the_maximum_and_keeps_its_last_separator(tiny_base: Path, tokenizer: Tokenizer) -> None:
    tokens = table(tiny_base, [TEXTS[4]])
    ids = tokens.inputs_of(np.array([0]))["input_ids"][0].tolist()
    whole = tokenizer.encode(TEXTS[4]).ids
    assert len(whole) > 16
    assert ids == [*whole[:15], tokenizer.token_to_id("[SEP]")]


def test_a_blank_text_still_has_its_two_marks(tiny_base: Path) -> None:
    assert table(tiny_base, [""]).lengths.tolist() == [2]


def test_a_pair_has_the_types_of_its_two_texts(tiny_base: Path, tokenizer: Tokenizer) -> None:
    inputs = table(tiny_base, PAIRS).inputs_of(np.arange(3))
    for i, (first, second) in enumerate(PAIRS):
        encoding = tokenizer.encode(first, second)
        n = len(encoding.ids)
        assert inputs["input_ids"][i, :n].tolist() == encoding.ids
        assert inputs["token_type_ids"][i].tolist() == encoding.type_ids + [0] * (inputs["input_ids"].shape[1] - n)
    assert inputs["token_type_ids"].any()


def test_of_a_pair_that_is_too_long_the_longer_text_is_cut_first(tiny_base: Path, tokenizer: Tokenizer) -> None:
    tokens = table(tiny_base, [("hello there" * 30, "money back")])
    ids = tokens.inputs_of(np.array([0]))["input_ids"][0].tolist()
    assert len(ids) == 16
    assert ids[-3:] == [tokenizer.token_to_id(word) for word in ("money", "back", "[SEP]")]


def test_a_model_without_types_gets_none(tiny_base: Path) -> None:
    assert set(table(tiny_base, PAIRS, has_types=False).inputs_of(np.arange(3))) == {"input_ids", "attention_mask"}


def test_a_tokenizer_that_pads_or_cuts_by_itself_is_told_not_to(tiny_base: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_base / "tokenizer.json").read_text())
    settings["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    settings["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    assert table(tmp_path, list(TEXTS)).lengths.tolist() == table(tiny_base, list(TEXTS)).lengths.tolist()


def test_other_texts_are_read_the_same_way(tiny_base: Path) -> None:
    tokens = table(tiny_base, ["hello"], pad_id=9)
    other = tokens.like(tiny_base, PAIRS, 16)
    expected = table(tiny_base, PAIRS, pad_id=9).inputs_of(np.arange(3))
    for name, tensor in other.inputs_of(np.arange(3)).items():
        assert torch.equal(tensor, expected[name])


def test_a_rows_logits_do_not_depend_on_its_neighbours(tiny_base: Path) -> None:
    texts: list[Text] = [text for text, _ in learnable_rows(24)]
    tokens = TokenTable.of(tiny_base, texts, 32, pad_id=0, has_types=True)
    network = load_native(tiny_base, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=None).eval()
    with torch.no_grad():
        together = network(**tokens.inputs_of(np.arange(24))).logits
        for row in range(24):
            alone = network(**tokens.inputs_of(np.array([row]))).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
    assert len(set(tokens.lengths.tolist())) > 4  # so that some of them were padded


def test_rows_in_buckets_are_padded_to_few_lengths_and_read_the_same(tiny_base: Path) -> None:
    table = TokenTable.of(tiny_base, [text for text, _ in learnable_rows(40)], 32, pad_id=0, has_types=True)
    few = table.in_buckets(3)
    inputs, plain = few.inputs_of(np.arange(2)), table.inputs_of(np.arange(2))
    assert inputs["input_ids"].shape == (2, few.widths[:2].max())
    for name, tensor in inputs.items():
        longest = plain[name].shape[1]
        assert torch.equal(tensor[:, :longest], plain[name])
        assert not tensor[:, longest:].any()
    assert table.widths is table.lengths


def test_buckets_are_few_hold_every_row_and_add_the_least_padding() -> None:
    lengths = np.random.default_rng(0).gamma(2.0, 12.0, 500).astype(np.int64) + 3
    for most in (1, 2, 4):
        widths = bucketed(lengths, most)
        edges = np.unique(widths)
        assert (widths >= lengths).all()
        assert len(edges) <= most
        assert (edges[:-1] % 8 == 0).all()
        assert edges[-1] == lengths.max()
        allowed = np.unique(np.minimum(-(-lengths // 8) * 8, lengths.max()))
        tried = [np.array([*some, allowed[-1]]) for some in combinations(allowed[:-1], most - 1)]
        assert widths.sum() == min(each[np.searchsorted(each, lengths)].sum() for each in tried)
    assert bucketed(np.array([5, 5, 5]), 6).tolist() == [5, 5, 5]
    assert bucketed(np.array([30, 2, 9]), 6).tolist() == [30, 8, 16]


def test_features_are_given_back_by_row_and_cost_one_unit_each() -> None:
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = FeatureTable(features)
    assert rows.lengths.tolist() == [1, 1, 1, 1]
    assert rows.inputs_of(np.array([2, 0]))["features"].tolist() == features[[2, 0]].tolist()


def test_texts_that_come_some_at_a_time_are_read_as_all_at_once(tiny_base: Path) -> None:
    pieces = list(token_arrays(tiny_base, [PAIRS[:1], PAIRS[1:]], 16, has_types=True))
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    tokens = TokenTable(joined, pad_id=0)
    for name, tensor in table(tiny_base, PAIRS).inputs_of(np.arange(3)).items():
        assert torch.equal(tokens.inputs_of(np.arange(3))[name], tensor)


def test_the_ids_in_use_are_those_of_all_texts_and_the_padding(tiny_base: Path, tokenizer: Tokenizer) -> None:
    expected = {9, *(id_ for text in TEXTS[:4] for id_ in tokenizer.encode(text).ids)}
    assert table(tiny_base, list(TEXTS[:4]), pad_id=9).used_ids().tolist() == sorted(expected)
    pad_id = max(expected) + 5
    assert table(tiny_base, ["hello"], pad_id=pad_id).used_ids().tolist()[-1] == pad_id
