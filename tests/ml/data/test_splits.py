"""Rows to parts: nothing lost, nothing in two parts, shares and labels kept as well as whole rows allow."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ml.data.splits import LEFT_OUT, Part, split_folds, split_rows
from ml.specs.job import Split

LABELS = ["a"] * 100 + ["b"] * 37 + ["c"] * 13
SPLIT = Split(validation=0.1, test=0.2)


def rows_in(parts: NDArray[np.int8], part: Part, labels: Sequence[str] = LABELS) -> Counter[str]:
    """Rows of a part by label."""
    return Counter(np.array(labels)[parts == part].tolist())


def test_the_same_arguments_give_the_same_parts_and_another_seed_gives_others() -> None:
    parts = split_rows(SPLIT, 17, LABELS, None, None)
    assert (split_rows(SPLIT, 17, LABELS, None, None) == parts).all()
    assert (split_rows(SPLIT, 18, LABELS, None, None) != parts).any()


def test_each_label_keeps_its_share_within_one_row() -> None:
    parts = split_rows(SPLIT, 17, LABELS, None, None)
    for part, share in ((Part.VALIDATION, 0.1), (Part.TEST, 0.2), (Part.TRAIN, 0.7)):
        counts = rows_in(parts, part)
        for label, rows in Counter(LABELS).items():
            assert abs(counts[label] - share * rows) <= (1 if part else 2)  # train takes what two parts leave
    assert (parts == Part.VALIDATION).sum() == 15
    assert (parts == Part.TEST).sum() == 30


def test_without_stratification_only_the_totals_are_kept() -> None:
    by_seed = [split_rows(Split(test=0.2, stratify=False), seed, LABELS, None, None) for seed in range(5)]
    assert {int((parts == Part.TEST).sum()) for parts in by_seed} == {30}
    assert len({rows_in(parts, Part.TEST)["c"] for parts in by_seed}) > 1


def test_no_share_draws_no_rows() -> None:
    parts = split_rows(Split(validation=0, test=0), 17, LABELS, None, None)
    assert (parts == Part.TRAIN).all()


def test_the_datasets_own_split_wins() -> None:
    named = ["train", "validation", "test"] * 50
    parts = split_rows(SPLIT, 17, LABELS, named, None)
    assert parts.tolist() == [Part.TRAIN, Part.VALIDATION, Part.TEST] * 50


def test_a_part_that_the_split_column_lacks_is_drawn_from_its_train_rows() -> None:
    named = ["train"] * 130 + ["test"] * 20
    parts = split_rows(Split(validation=0.1, test=0.5), 17, LABELS, named, None)
    assert (parts[130:] == Part.TEST).all()
    assert (parts[:130] != Part.TEST).all()
    assert (parts[:130] == Part.VALIDATION).sum() == 13


def test_a_row_that_names_no_part_is_trained_on() -> None:
    parts = split_rows(SPLIT, 17, ["a", "b", "a", "b"], ["validation", None, "test", "train"], None)
    assert parts.tolist() == [Part.VALIDATION, Part.TRAIN, Part.TEST, Part.TRAIN]


def test_rows_of_a_group_stay_together() -> None:
    groups = [f"user {i % 30}" for i in range(len(LABELS))]
    parts = split_rows(SPLIT, 17, LABELS, None, groups)
    of_group = {group: {parts[i] for i, other in enumerate(groups) if other == group} for group in set(groups)}
    assert all(len(found) == 1 for found in of_group.values())
    assert (parts == Part.VALIDATION).sum() == 15
    assert (parts == Part.TEST).sum() == 30


def test_a_row_without_a_group_is_a_group_of_its_own() -> None:
    parts = split_rows(SPLIT, 17, LABELS, None, [None] * len(LABELS))
    assert Counter(parts.tolist()) == {Part.TRAIN: 105, Part.VALIDATION: 15, Part.TEST: 30}


@pytest.mark.parametrize("seed", range(10))
def test_a_tiny_label_keeps_a_row_to_train_on(seed: int) -> None:
    labels = ["big"] * 60 + ["pair"] * 2 + ["single"]
    parts = split_rows(Split(validation=0.4, test=0.4), seed, labels, None, None)
    training = rows_in(parts, Part.TRAIN, labels)
    assert training["pair"] >= 1
    assert training["single"] == 1


def test_many_small_labels_do_not_all_round_to_nothing() -> None:
    labels = [f"intent {i}" for i in range(50) for _ in range(4)]
    parts = split_rows(SPLIT, 17, labels, None, None)
    assert (parts == Part.VALIDATION).sum() == 20
    assert (parts == Part.TEST).sum() == 40


shares = st.floats(0, 0.45)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60)
@given(labels=st.lists(st.sampled_from("abcd"), min_size=1, max_size=80), validation=shares, test=shares, seed=seeds)
def test_every_row_has_one_part_no_part_exceeds_its_share_and_every_label_is_trained_on(
    labels: list[str], validation: float, test: float, seed: int
) -> None:
    parts = split_rows(Split(validation=validation, test=test), seed, labels, None, None)
    assert len(parts) == len(labels)
    assert set(parts.tolist()) <= {Part.TRAIN, Part.VALIDATION, Part.TEST}
    for part, share in ((Part.VALIDATION, validation), (Part.TEST, test)):
        assert (parts == part).sum() <= share * len(labels) + 0.5 + 1e-9
    assert set(rows_in(parts, Part.TRAIN, labels)) == set(labels)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(20, 60), min_size=1, max_size=5), validation=shares, test=shares, seed=seeds)
def test_where_labels_have_rows_enough_the_shares_are_met_within_half_a_row(
    sizes: list[int], validation: float, test: float, seed: int
) -> None:
    labels = [f"label {i}" for i, size in enumerate(sizes) for _ in range(size)]
    parts = split_rows(Split(validation=validation, test=test), seed, labels, None, None)
    for part, share in ((Part.VALIDATION, validation), (Part.TEST, test)):
        assert abs((parts == part).sum() - share * len(labels)) <= 0.5 + 1e-9
        counts = rows_in(parts, part, labels)
        for i, size in enumerate(sizes):
            assert abs(counts[f"label {i}"] - share * size) <= 1 + 1e-9


@settings(max_examples=60)
@given(
    groups=st.lists(st.one_of(st.none(), st.sampled_from(["x", "y", "z", "", "0"])), min_size=1, max_size=60),
    validation=shares,
    test=shares,
    seed=seeds,
)
def test_no_group_ever_straddles_and_something_is_left_to_train_on(
    groups: list[str | None], validation: float, test: float, seed: int
) -> None:
    parts = split_rows(Split(validation=validation, test=test), seed, ["a"] * len(groups), None, groups)
    for group in set(groups) - {None, ""}:
        assert len({part for part, other in zip(parts.tolist(), groups, strict=True) if other == group}) == 1
    assert (parts == Part.TRAIN).any()
    for part, share in ((Part.VALIDATION, validation), (Part.TEST, test)):
        assert (parts == part).sum() <= share * len(groups) + 1e-9


# --------------------------------------------------------------------------------------------------------------- folds


def folds_of(count: int, split: Split = SPLIT, **others: Sequence[str | None] | int) -> list[NDArray[np.int8]]:
    whole: dict[str, Any] = {"seed": 17, "labels": LABELS, "named": None, "groups": None, **others}
    return split_folds(split, count=count, **whole)


def test_every_row_is_tested_on_once() -> None:
    runs = folds_of(7)
    assert (sum((parts == Part.TEST).astype(int) for parts in runs) == 1).all()
    assert sorted(int((parts == Part.TEST).sum()) for parts in runs) == [21] * 4 + [22] * 3
    assert all(np.array_equal(*pair) for pair in zip(runs, folds_of(7), strict=True))
    assert not np.array_equal(runs[0], folds_of(7, seed=18)[0])


def test_a_label_has_as_many_rows_in_every_fold_within_one() -> None:
    for label in "abc":
        counts = [rows_in(parts, Part.TEST)[label] for parts in folds_of(5)]
        assert max(counts) - min(counts) <= 1
    counts = [rows_in(parts, Part.TEST)["a"] for parts in folds_of(5, Split(stratify=False))]
    assert max(counts) - min(counts) > 1


def test_validation_is_drawn_from_the_training_rows_of_a_run() -> None:
    for parts in folds_of(5):
        assert [int((parts == part).sum()) for part in Part] == [108, 12, 30]
    assert not (folds_of(5, Split(validation=0))[0] == Part.VALIDATION).any()


def test_rows_held_out_as_test_are_in_no_run_and_those_of_validation_are_in_the_folds() -> None:
    named = (["train"] * 3 + ["validation", "test"]) * 30
    runs = folds_of(4, named=named)
    assert all(((parts == LEFT_OUT) == (np.array(named) == "test")).all() for parts in runs)
    tested = sum((parts == Part.TEST).astype(int) for parts in runs)
    assert (tested[np.array(named) == "validation"] == 1).all()


def test_groups_stay_whole_in_folds_of_about_one_size() -> None:
    groups = [f"user {min(i % 40, 12)}" for i in range(len(LABELS))]  # one of them large
    runs = folds_of(4, groups=groups)
    for parts in runs:
        of_group = {group: {parts[i] for i, other in enumerate(groups) if other == group} for group in set(groups)}
        assert all(len(found) == 1 for found in of_group.values())
    sizes = sorted(int((parts == Part.TEST).sum()) for parts in runs)
    assert sizes[-1] == groups.count("user 12")
    assert sizes[-2] - sizes[0] <= 4
