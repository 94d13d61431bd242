"""Texts as careless hands would have written them: by the seed and the row alone, and in any script."""

import re
from collections import Counter

import pytest

from ml.evaluation.perturbations import GAPS, draws, perturb
from ml.specs.bulk import Perturbation

KINDS: tuple[Perturbation, ...] = ("typo", "case", "whitespace")
TEXT = "Where is my parcel? I have waited for it since Monday morning."


def changed(kind: Perturbation, text: str, row: int = 0, seed: int = 17) -> str:
    return perturb(text, kind, draws(kind, seed, row))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_and_the_row_decide(kind: Perturbation) -> None:
    assert changed(kind, TEXT) == changed(kind, TEXT)
    assert len({changed(kind, TEXT, row) for row in range(20)}) > 2
    assert [changed(kind, TEXT, row, seed=1) for row in range(20)] != [changed(kind, TEXT, row) for row in range(20)]


def test_a_typo_is_one_letter_of_a_tenth_of_the_words_and_of_one_at_least() -> None:
    words = TEXT.split()
    hit: Counter[int] = Counter()
    for row in range(400):
        after = changed("typo", TEXT, row).split()
        assert len(after) == len(words)
        different = [place for place, word in enumerate(words) if after[place] != word]
        assert len(different) <= 7
        hit.update(different)
        assert all(abs(len(after[place]) - len(words[place])) <= 1 for place in different)
        assert set("".join(after)) <= set(TEXT)
    assert set(hit) == set(range(len(words)))
    assert 1.0 < hit.total() / 400 < 2.0  # of twelve words


@pytest.mark.parametrize("text", ["a", "ok", "订单还没有发货", "où est ma commande"])
def test_a_typo_leaves_no_text_empty_and_stays_in_its_script(text: str) -> None:
    for row in range(50):
        after = changed("typo", text, row)
        assert after.strip()
        assert set(after) <= set(text)


def test_case_changes_nothing_but_case() -> None:
    found = {changed("case", TEXT, row) for row in range(50)}
    assert found == {TEXT.lower(), TEXT.upper(), TEXT.title()}
    assert changed("case", "订单还没有发货") == "订单还没有发货"


def test_whitespace_changes_gaps_alone_and_loses_a_tenth_of_them() -> None:
    lost = 0
    for row in range(400):
        after = changed("whitespace", TEXT, row)
        assert re.sub(r"\s", "", after) == re.sub(r"\s", "", TEXT)
        assert set(re.findall(r"\s+", after.strip())) <= set(GAPS)
        lost += len(TEXT.split()) - len(after.split())
    assert 0.05 < lost / 400 / (len(TEXT.split()) - 1) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_text_stays_blank(kind: Perturbation) -> None:
    assert not changed(kind, "  ").strip()
