"""Leaving a word out of the tokens is leaving it out of the text."""

import pytest
from tokenizers import Tokenizer

from ml.artifact.tokenizer import Text, load_tokenizer, tokenize, tokenize_with_places
from ml.inference.occlusion import find_words, leave_out
from tests.service import tiny_base


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(tiny_base(), 32)


def slow_parts(text: Text) -> list[list[str]]:
    return [part.split() for part in ((text,) if isinstance(text, str) else text)]


@pytest.mark.parametrize("text", ["Where is my unheardof parcel ?", "ok", ("my money", "late parcel xyz")])
def test_equals_encoding_the_text_again_without_the_word(tokenizer: Tokenizer, text: Text) -> None:
    (encoding,) = tokenize_with_places(tokenizer, [text])
    words, parts = find_words(encoding), slow_parts(text)
    spans = [(text if isinstance(text, str) else text[word.sequence])[word.start : word.end] for word in words]
    assert spans == [word for part in parts for word in part]
    at = 0
    for sequence, part in enumerate(parts):
        for i in range(len(part)):
            shorter = [
                " ".join(part[:i] + part[i + 1 :]) if j == sequence else " ".join(p) for j, p in enumerate(parts)
            ]
            (expected,) = tokenize(tokenizer, [shorter[0] if isinstance(text, str) else (shorter[0], shorter[1])])
            left = leave_out(encoding, words[at])
            assert (left.ids, left.type_ids) == (expected.ids, expected.type_ids)
            at += 1
