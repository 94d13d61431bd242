"""Which rows an epoch takes by each sampler, held against what the sampler promises, counted row by row."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from ml.data.batches import Rows, plan_epoch, steps_per_epoch
from ml.data.samplers import sample_epoch
from ml.specs.samplers import Sampler

GENERATOR = np.random.default_rng(5)
LENGTHS: NDArray[np.int64] = GENERATOR.integers(3, 120, 1000)
# 6 labels, of which the commonest has about 300 times the rows of the rarest; label 3 has none.
LABELS: NDArray[np.int64] = GENERATOR.choice(7, 1000, p=[0.6, 0.25, 0.1, 0, 0.03, 0.017, 0.003])
ROWS: Rows = np.flatnonzero(GENERATOR.random(1000) < 0.8)
PRESENT = sorted(set(LABELS[ROWS].tolist()))

SHUFFLE = {"type": "shuffle"}
BALANCED = {"type": "class_balanced"}
SAMPLERS: list[Any] = [SHUFFLE, BALANCED, {"type": "m_per_class", "m": 4}, {"type": "m_per_class", "m": 8}]


def sample(sampler: Any, batch_size: int = 16, seed: int = 17, epoch: int = 0, rows: Rows = ROWS) -> list[Rows]:
    spec = TypeAdapter[Any](Sampler).validate_python(sampler)
    return sample_epoch(spec, rows, LABELS, LENGTHS, batch_size=batch_size, seed=seed, epoch=epoch)


def labels_of(steps: list[Rows]) -> Counter[int]:
    return Counter(LABELS[np.concatenate(steps)].tolist())


def padding_share(steps: list[Rows]) -> float:
    padded = sum(len(step) * int(LENGTHS[step].max()) for step in steps)
    return 1 - sum(int(LENGTHS[step].sum()) for step in steps) / padded


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_epoch_keeps_its_number_of_steps_and_takes_training_rows_alone(sampler: Any) -> None:
    plan = sample(sampler)
    assert len(plan) == steps_per_epoch(len(ROWS), 16)
    assert set(np.concatenate(plan).tolist()) <= set(ROWS.tolist())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_arguments_give_the_same_steps_and_others_do_not(sampler: Any) -> None:
    first, again = sample(sampler, epoch=2), sample(sampler, epoch=2)
    assert [step.tolist() for step in first] == [step.tolist() for step in again]
    for other in (sample(sampler, epoch=3), sample(sampler, epoch=2, seed=18)):
        shared = {frozenset(step.tolist()) for step in first} & {frozenset(step.tolist()) for step in other}
        assert len(shared) <= 0.1 * len(first)


def test_shuffle_is_an_epoch_of_every_row_once() -> None:
    expected = plan_epoch(ROWS, LENGTHS, 16, 17, 1)
    assert [step.tolist() for step in sample("shuffle", epoch=1)] == [step.tolist() for step in expected]


# ------------------------------------------------------------------------------------------------------- class_balanced


def test_every_label_comes_equally_often_to_one_row() -> None:
    counts = labels_of(sample(BALANCED))
    assert sorted(counts) == PRESENT
    assert sum(counts.values()) == len(ROWS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_rows_of_a_label_take_turns() -> None:
    times = Counter(np.concatenate(sample(BALANCED)).tolist())
    for label in PRESENT:
        own = [times[row] for row in ROWS.tolist() if LABELS[row] == label]
        assert max(own) - min(own) <= 1, label


def test_over_the_epochs_the_rows_of_a_common_label_all_come() -> None:
    seen = {row for epoch in range(20) for row in np.concatenate(sample(BALANCED, epoch=epoch)).tolist()}
    assert seen == set(ROWS.tolist())


def test_the_label_that_gets_a_row_more_is_drawn() -> None:
    rows = ROWS[: len(ROWS) - len(ROWS) % len(PRESENT) + 1]
    favoured = {labels_of(sample(BALANCED, epoch=epoch, rows=rows)).most_common(1)[0][0] for epoch in range(30)}
    assert len(favoured) > 2


def test_balanced_rows_of_like_length_go_together() -> None:
    assert padding_share(sample(BALANCED)) < 0.15


# ---------------------------------------------------------------------------------------------------------- m_per_class


@pytest.mark.parametrize(("m", "batch_size"), [(2, 8), (4, 16), (4, 24), (8, 16), (3, 12)])
def test_a_step_holds_m_rows_of_each_of_its_labels(m: int, batch_size: int) -> None:
    for step in sample({"type": "m_per_class", "m": m}, batch_size):
        assert len(step) == batch_size
        assert list(Counter(LABELS[step].tolist()).values()) == [m] * (batch_size // m)


def test_the_rows_of_a_label_in_a_step_differ_where_it_has_so_many() -> None:
    sizes = Counter(LABELS[ROWS].tolist())
    assert min(sizes.values()) < 8 <= sorted(sizes.values())[1]
    for epoch in range(10):
        for step in sample({"type": "m_per_class", "m": 8}, epoch=epoch):
            for label in set(LABELS[step].tolist()):
                distinct = {row for row in step.tolist() if LABELS[row] == label}
                assert len(distinct) == min(8, sizes[label])


def test_labels_are_drawn_evenly_whatever_their_rows() -> None:
    counts: Counter[int] = Counter()
    for epoch in range(40):
        counts += labels_of(sample({"type": "m_per_class", "m": 4}, epoch=epoch))
    expected = sum(counts.values()) / len(PRESENT)
    assert sorted(counts) == PRESENT
    assert all(abs(count / expected - 1) < 0.1 for count in counts.values())


def test_over_the_epochs_every_row_meets_others() -> None:
    seen = {row for epoch in range(30) for row in np.concatenate(sample(SAMPLERS[2], epoch=epoch)).tolist()}
    assert seen == set(ROWS.tolist())


def test_groups_of_like_length_meet() -> None:
    common = np.flatnonzero(LABELS < 2)
    plan = sample({"type": "m_per_class", "m": 8}, rows=common)
    chance = np.random.default_rng(0)
    shuffled = [np.concatenate([chance.choice(common[LABELS[common] == label], 8) for label in (0, 1)]) for _ in plan]
    assert padding_share(plan) < 0.2
    assert padding_share(shuffled) > 0.35


def test_steps_come_in_random_order_not_by_length() -> None:
    longest = [int(LENGTHS[step].max()) for step in sample(SAMPLERS[2])]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_an_epoch_of_one_step_and_few_rows_is_still_a_whole_step() -> None:
    rows = np.concatenate([ROWS[LABELS[ROWS] == label][:1] for label in PRESENT[:2]])
    (step,) = sample({"type": "m_per_class", "m": 4}, 8, rows=rows)
    assert Counter(step.tolist()) == dict.fromkeys(rows.tolist(), 4)
