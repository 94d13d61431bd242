"""Whether one way of training is better than another: runs paired by seed, measured on the same rows.

A difference has two sources of noise: the seed (the head, the order and dropout), and which rows happened to be in the
part that is measured. The first is seen in the spread over the seeds, the second by leaving out a twentieth of the rows
at a time (the delete-group jackknife: Shao and Tu 1995, The Jackknife and Bootstrap, chapter 2). Both count: an
interval of the seeds alone says nothing of other texts.

Runs over folds are measured on rows of their own, so their spread holds both. But each two of them share most of their
training rows: they are alike, and their spread is too small for the error of their mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUPS = 20
_ORDER_SEED = 0x7AC0


@dataclass(frozen=True)
class Runs:
    """One way of training: its metric under each seed, and with each group of rows left out."""

    values: NDArray[np.float64]  # (S,)
    without: NDArray[np.float64]  # (S, G); NaN where the metric is undefined without a group


@dataclass(frozen=True)
class Difference:
    """Mean difference of two ways, its 95% interval, and the chance of one as large if there were none."""

    mean: float
    low: float
    high: float
    p_value: float


def leave_out(rows: int) -> list[NDArray[np.int64]]:
    """For each of up to 20 groups, the rows that stay; the same groups for the same number of rows."""
    order = np.random.default_rng(_ORDER_SEED).permutation(rows)
    groups = min(GROUPS, rows)
    return [np.sort(np.delete(order, np.s_[group::groups])) for group in range(groups)]


def measure_without(measure: Callable[[NDArray[np.int64]], float | None], rows: int) -> list[float | None]:
    """A metric with each group left out; None where it is undefined then."""
    return [measure(kept) if len(kept) else None for kept in leave_out(rows)]


def compare(runs: Runs, baseline: Runs) -> Difference | None:
    """How far `runs` lie above `baseline`; None where the rows are too few for an interval.

    A t-interval whose variance is that of the seeds' mean and that of the rows added up, its degrees of freedom by
    Satterthwaite's rule (Biometrics Bulletin 2, 1946).
    """
    by_seed = runs.values - baseline.values  # (S,)
    by_group = (runs.without - baseline.without).mean(0)  # (G,)
    seeds, groups = len(by_seed), len(by_group)
    if groups < 2 or not np.isfinite(by_group).all():
        return None
    mean = float(by_seed.mean())
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_rows = (groups - 1) / groups * float(((by_group - by_group.mean()) ** 2).sum())
    variance = of_seeds + of_rows
    if variance == 0:
        return _t_interval(mean, 0.0, 1.0)
    return _t_interval(mean, variance, variance**2 / (of_seeds**2 / (seeds - 1) + of_rows**2 / (groups - 1)))


def compare_folds(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> Difference | None:
    """How far `values` lie above `baseline`, both a metric on each of the same folds (K,).

    None where they lie above it by the same in every fold: two folds of few rows often do, and it is no certainty.
    The corrected resampled t-test (Nadeau and Bengio 2003, Machine Learning 52): the variance of the mean of K
    differences is taken to be 1/K + test rows / training rows times theirs; of folds that ratio is 1/(K − 1).
    """
    by_fold = values - baseline
    folds, mean, variance = len(by_fold), float(by_fold.mean()), float(by_fold.var(ddof=1))
    if mean != 0 and np.ptp(by_fold) < 1e-12:
        return None
    return _t_interval(mean, (1 / folds + 1 / (folds - 1)) * variance, folds - 1)


def _t_interval(mean: float, variance: float, freedom: float) -> Difference:
    """variance: of the mean."""
    from scipy.stats import t

    if variance == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    error = variance**0.5
    reach = float(t.ppf(0.975, freedom)) * error
    return Difference(mean, mean - reach, mean + reach, float(2 * t.sf(abs(mean) / error, freedom)))


def adjust(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: what holds of one comparison of several (Holm 1979, Scandinavian Journal of Statistics 6)."""
    adjusted = np.zeros(len(p_values))
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(value) for value in adjusted]
