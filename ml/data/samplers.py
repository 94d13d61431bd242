"""An epoch's steps by the sampler that was asked for. Each is the same wherever seed and epoch are the same.

It knows labels as numbers, and no text. Every sampler makes as many steps as `steps_per_epoch` says.
"""

import numpy as np
from numpy.typing import NDArray

from ml.data.batches import Rows, by_blurred_length, plan_epoch, steps_per_epoch
from ml.specs.samplers import ClassBalanced, MPerClass, Sampler


def sample_epoch(
    sampler: Sampler,
    rows: Rows,
    labels: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Rows]:
    """Divide an epoch into optimizer steps.

    rows: those that train. labels, lengths: of every row of the table, (N,); shuffle does not look at the labels.
    """
    if isinstance(sampler, MPerClass):
        return _m_per_class(rows, labels, lengths, sampler.m, batch_size, seed, epoch)
    if isinstance(sampler, ClassBalanced):
        rows = _balanced(rows, labels, seed, epoch)
    return plan_epoch(rows, lengths, batch_size, seed, epoch)


def _balanced(rows: Rows, labels: NDArray[np.int64], seed: int, epoch: int) -> Rows:
    """As many rows as there are, of each label the same number up to one; a label's rows take turns."""
    generator = np.random.default_rng([seed, epoch, 0xBA1])
    pools = _by_label(rows, labels)
    counts = np.full(len(pools), len(rows) // len(pools))
    counts[generator.permutation(len(pools))[: len(rows) % len(pools)]] += 1
    return np.concatenate([_take_turns(pool, count, generator) for pool, count in zip(pools, counts, strict=True)])


def _m_per_class(
    rows: Rows,
    labels: NDArray[np.int64],
    lengths: NDArray[np.int64],
    m: int,
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Rows]:
    """Steps of batch_size / m labels, drawn evenly, with m rows of each; in a step no label stands twice."""
    generator = np.random.default_rng([seed, epoch, 0x33C])
    pools = _by_label(rows, labels)
    steps, at_once = steps_per_epoch(len(rows), batch_size), batch_size // m
    chosen = np.stack([generator.choice(len(pools), at_once, replace=False) for _ in range(steps)])  # (S, K)
    plan = np.empty((steps * at_once, m), np.int64)
    # Each label's places in the plan, step after step.
    cuts = np.cumsum(np.bincount(chosen.ravel(), minlength=len(pools)))[:-1]
    for pool, where in zip(pools, np.split(np.argsort(chosen, axis=None, kind="stable"), cuts), strict=True):
        groups = _groups(pool, len(where), m, lengths, generator)
        # Every label's short groups stand in the same steps, and so do its long ones: padding stays small.
        plan[where] = groups[np.argsort(lengths[groups].max(1), kind="stable")]
    return list(generator.permutation(plan.reshape(steps, batch_size)))


def _groups(
    pool: Rows, count: int, m: int, lengths: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """`count` groups of m rows of like length (count, m): different ones where the label has so many."""
    groups = [np.empty((0, m), np.int64)]
    at_once = max(1, len(pool) // m)
    for _ in range(-(-count // at_once)):
        turn = by_blurred_length(_take_turns(pool, at_once * m, generator), lengths, generator)
        groups.append(generator.permutation(turn.reshape(-1, m)))
    return np.concatenate(groups)[:count]


def _by_label(rows: Rows, labels: NDArray[np.int64]) -> list[Rows]:
    """The rows of each label that has any."""
    own = labels[rows]
    return np.split(rows[np.argsort(own, kind="stable")], np.flatnonzero(np.diff(np.sort(own))) + 1)


def _take_turns(pool: Rows, count: int, generator: np.random.Generator) -> Rows:
    """`count` rows of a pool at random: none comes again before all the others have."""
    turns = [generator.permutation(pool) for _ in range(-(-count // len(pool)))]
    return np.concatenate([pool[:0], *turns])[:count]
