"""Windows hold every token of a text, in order, and are pooled as a slow loop would."""

import numpy as np
import pytest
from tokenizers import Encoding, Tokenizer

from ml.artifact.tokenizer import load_tokenizer, tokenize
from ml.inference.windows import Pooling, cut, pool
from tests.service import tiny_base

MAX_LENGTH = 10  # of which 8 are of the text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(tiny_base(), MAX_LENGTH)


def words(count: int) -> str:
    return " ".join(["parcel", "money", "music", "late", "card"][i % 5] for i in range(count))


def slow_windows(ids: list[int], width: int, overlap: int) -> list[list[int]]:
    found, start = [], 0
    while start + width < len(ids):
        found.append(ids[start : start + width])
        start += width - overlap
    return [*found, ids[-width:]]


@pytest.mark.parametrize("overlap", [0, 1, 3, 7])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 41])
def test_windows_are_those_of_a_slow_loop_between_the_special_tokens(
    tokenizer: Tokenizer, count: int, overlap: int
) -> None:
    (encoding,) = tokenize(tokenizer, [words(count)])
    (whole,) = Tokenizer.from_file(str(tiny_base() / "tokenizer.json")).encode_batch([words(count)])
    windows = list(cut(encoding, overlap))
    first, *text, last = whole.ids
    assert [list(window.ids) for window in windows] == [
        [first, *ids, last] for ids in slow_windows(text, MAX_LENGTH - 2, overlap)
    ]
    for window in windows:
        assert len(window) == len(window.ids) == len(window.type_ids) == len(window.attention_mask)
        assert set(window.attention_mask) == {1}


def test_a_text_that_fits_is_its_only_window(tokenizer: Tokenizer) -> None:
    (encoding,) = tokenize(tokenizer, [words(8)])
    (window,) = cut(encoding, 2)
    assert isinstance(window, Encoding)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_that_of_a_slow_loop(pooling: Pooling) -> None:
    counts = [1, 4, 2, 1, 7]
    rows = np.random.default_rng(0).normal(size=(sum(counts), 3)).astype(np.float32)
    expected, start = [], 0
    for count in counts:
        mine = rows[start : start + count].astype(float)
        expected.append([(sum(column) / count if pooling == "mean" else max(column)) for column in mine.T])
        start += count
    np.testing.assert_allclose(pool(rows, counts, pooling), expected)
