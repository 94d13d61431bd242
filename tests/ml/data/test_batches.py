"""Epochs of steps, and steps of micro-batches: every row once, like lengths together, no more padding than need be."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.data.batches import POOL_STEPS, Rows, cut_step, plan_epoch, steps_per_epoch

GENERATOR = np.random.default_rng(2)
LENGTHS: NDArray[np.int64] = GENERATOR.integers(3, 120, 1000)
ROWS: Rows = np.flatnonzero(GENERATOR.random(1000) < 0.8)


def padding_share(steps: list[Rows]) -> float:
    padded = sum(len(step) * int(LENGTHS[step].max()) for step in steps)
    return 1 - sum(int(LENGTHS[step].sum()) for step in steps) / padded


@pytest.mark.parametrize("batch_size", [1, 7, 16, 32, 4096])
def test_an_epoch_holds_every_row_once_in_as_many_steps_as_announced(batch_size: int) -> None:
    plan = plan_epoch(ROWS, LENGTHS, batch_size, seed=17, epoch=0)
    assert np.sort(np.concatenate(plan)).tolist() == ROWS.tolist()
    assert len(plan) == steps_per_epoch(len(ROWS), batch_size)
    assert max(map(len, plan)) == min(batch_size, len(ROWS))


def test_every_step_but_the_last_of_a_pool_is_full() -> None:
    rows = np.arange(2 * POOL_STEPS * 4 + 3)
    plan = plan_epoch(rows, np.ones(len(rows), np.int64), 4, seed=0, epoch=0)
    assert sorted(map(len, plan)) == [3] + [4] * (2 * POOL_STEPS)


def test_the_same_arguments_give_the_same_plan() -> None:
    first, again = (plan_epoch(ROWS, LENGTHS, 16, seed=17, epoch=3) for _ in range(2))
    assert [step.tolist() for step in first] == [step.tolist() for step in again]


@pytest.mark.parametrize("batch_size", [4, 32])  # several pools, and one that holds every row
@pytest.mark.parametrize(("seed", "epoch"), [(17, 1), (18, 0)])
def test_another_epoch_or_seed_pairs_other_rows(seed: int, epoch: int, batch_size: int) -> None:
    first = {frozenset(step.tolist()) for step in plan_epoch(ROWS, LENGTHS, batch_size, seed=17, epoch=0)}
    other = {frozenset(step.tolist()) for step in plan_epoch(ROWS, LENGTHS, batch_size, seed=seed, epoch=epoch)}
    assert len(first & other) <= 0.1 * len(first)


@pytest.mark.parametrize(("seed", "epoch"), [(17, 1), (18, 0)])
def test_another_epoch_or_seed_comes_in_another_order(seed: int, epoch: int) -> None:
    first = np.concatenate(plan_epoch(ROWS, LENGTHS, 32, seed=17, epoch=0))
    assert (first != np.concatenate(plan_epoch(ROWS, LENGTHS, 32, seed=seed, epoch=epoch))).any()


def test_like_lengths_go_together() -> None:
    planned = padding_share(plan_epoch(ROWS, LENGTHS, 16, seed=17, epoch=0))
    shuffled = padding_share(np.array_split(np.random.default_rng(0).permutation(ROWS), len(ROWS) // 16))
    assert planned < 0.15  # lengths are blurred by up to 15%
    assert shuffled > 0.3


def test_steps_come_in_random_order_not_by_length() -> None:
    longest = [int(LENGTHS[step].max()) for step in plan_epoch(ROWS, LENGTHS, 16, seed=17, epoch=0)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("max_tokens", [1, 50, 119, 500, 10_000])
def test_a_cut_keeps_to_the_token_budget_and_holds_every_row_once(max_tokens: int) -> None:
    step = ROWS[:64]
    micros = list(cut_step(step, LENGTHS, max_tokens=max_tokens, max_rows=None))
    assert sorted(np.concatenate(micros).tolist()) == sorted(step.tolist())
    for micro in micros:
        padded = len(micro) * int(LENGTHS[micro].max())
        assert padded <= max_tokens or len(micro) == 1


def test_a_budget_that_holds_the_whole_step_does_not_cut_it() -> None:
    step = ROWS[:64]
    budget = 64 * int(LENGTHS[step].max())
    assert len(list(cut_step(step, LENGTHS, max_tokens=budget, max_rows=None))) == 1
    assert len(list(cut_step(step, LENGTHS, max_tokens=budget - 1, max_rows=None))) == 2


@pytest.mark.parametrize(("max_rows", "expected"), [(1, [1] * 11), (5, [5, 5, 1]), (11, [11]), (32, [11])])
def test_given_rows_cut_whatever_the_budget(max_rows: int, expected: list[int]) -> None:
    micros = list(cut_step(ROWS[:11], LENGTHS, max_tokens=1, max_rows=max_rows))
    assert [len(micro) for micro in micros] == expected
    assert sorted(np.concatenate(micros).tolist()) == sorted(ROWS[:11].tolist())
