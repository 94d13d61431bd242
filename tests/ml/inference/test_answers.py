"""Rows that are known are not run again, those of another model are, and what is kept stays within its bytes."""

import numpy as np

from ml.artifact.tokenizer import Tokens
from ml.inference.answers import ENTRY_BYTES, AnswerCache


def row(*ids: int, type_id: int = 0) -> Tokens:
    return Tokens(list(ids), [type_id] * len(ids))


def logits(*values: float) -> np.ndarray:
    return np.array([[value, -value] for value in values], np.float32)


def test_only_rows_that_are_not_known_are_missing_and_all_come_back_in_their_order() -> None:
    cache = AnswerCache(1_000_000)
    first = cache.look_up("a", [row(1), row(2)])
    np.testing.assert_array_equal(first.complete(logits(1, 2)), logits(1, 2))
    second = cache.look_up("a", [row(3), row(2), row(4), row(1)])
    assert (second.missing, second.cached) == ([row(3), row(4)], 2)
    np.testing.assert_array_equal(second.complete(logits(3, 4)), logits(3, 2, 4, 1))
    third = cache.look_up("a", [row(4), row(3)])
    assert third.missing == []
    np.testing.assert_array_equal(third.complete(None), logits(4, 3))


def test_another_model_or_other_tokens_are_not_known() -> None:
    cache = AnswerCache(1_000_000)
    cache.look_up("a", [row(1, 2)]).complete(logits(1))
    for model, other in [("b", row(1, 2)), ("a", row(1)), ("a", row(2, 1)), ("a", row(1, 2, type_id=1))]:
        assert cache.look_up(model, [other]).missing == [other]


def test_the_least_recently_used_go_first() -> None:
    size = ENTRY_BYTES + 8
    cache = AnswerCache(2 * size)
    cache.look_up("a", [row(1), row(2)]).complete(logits(1, 2))
    cache.look_up("a", [row(1)])
    cache.look_up("a", [row(3)]).complete(logits(3))
    assert cache.held_bytes == 2 * size
    assert cache.look_up("a", [row(1), row(2), row(3)]).missing == [row(2)]
