"""Paired differences: the interval covers the truth as often as it says, and counts both sources of noise."""

import numpy as np
import pytest
from scipy import stats

from ml.evaluation.paired import GROUPS, Runs, adjust, compare, compare_folds, leave_out, measure_without


def runs(values: list[float], without: np.ndarray) -> Runs:
    return Runs(np.array(values), without)


def steady(values: list[float]) -> Runs:
    """A metric that no row changes."""
    return runs(values, np.repeat(np.array(values)[:, None], GROUPS, axis=1))


def test_every_row_is_left_out_once() -> None:
    kept = leave_out(103)
    left_out = np.concatenate([np.setdiff1d(np.arange(103), rows) for rows in kept])
    assert len(kept) == GROUPS
    assert sorted(left_out.tolist()) == list(range(103))


def test_the_groups_are_the_same_for_the_same_number_of_rows() -> None:
    assert all(np.array_equal(a, b) for a, b in zip(leave_out(57), leave_out(57), strict=True))


def test_with_few_rows_each_is_a_group_of_its_own() -> None:
    assert [len(rows) for rows in leave_out(3)] == [2, 2, 2]
    assert measure_without(lambda rows: float(rows.sum()), 1) == [None]


def test_without_noise_of_the_rows_it_is_the_paired_t_test() -> None:
    ours, baseline = [0.81, 0.84, 0.80, 0.86, 0.83], [0.80, 0.81, 0.81, 0.82, 0.80]
    found = compare(steady(ours), steady(baseline))
    expected = stats.ttest_rel(ours, baseline)
    low, high = expected.confidence_interval(0.95)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(ours) - np.mean(baseline), low, high))
    assert found.p_value == pytest.approx(expected.pvalue)


def test_without_noise_of_the_seeds_the_interval_is_that_of_the_rows() -> None:
    """Of a mean the jackknife gives the textbook's standard error, up to how rows fall into groups."""
    draw = np.random.default_rng(0)
    rows = draw.normal(0.3, 1.0, 20_000)
    without = np.array(measure_without(lambda kept: float(rows[kept].mean()), len(rows)))
    ours = runs([rows.mean()] * 3, np.tile(without, (3, 1)))
    found = compare(ours, steady([0.0, 0.0, 0.0]))
    assert found is not None
    reach = stats.t.ppf(0.975, GROUPS - 1) * rows.std() / np.sqrt(len(rows))
    assert found.high - found.mean == pytest.approx(reach, rel=0.35)


def test_the_interval_covers_the_truth() -> None:
    """Two ways that are equally good, each wrong on rows of its own, seeds adding noise: about 5% false alarms."""
    draw = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        rows = 400
        hard = draw.normal(size=rows)
        sides = []
        for _side in range(2):
            own = draw.normal(size=rows)
            right = [(hard + own + 0.5 * draw.normal(size=rows) > 0).astype(float) for _seed in range(5)]
            sides.append(
                runs(
                    [float(each.mean()) for each in right],
                    np.array([measure_without(lambda kept, e=each: float(e[kept].mean()), rows) for each in right]),
                )
            )
        found = compare(*sides)
        assert found is not None
        alarms += found.p_value < 0.05
    assert alarms / 300 < 0.08


def test_equal_runs_do_not_differ() -> None:
    found = compare(steady([0.5, 0.6]), steady([0.5, 0.6]))
    assert found is not None
    assert (found.mean, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_metric_that_is_undefined_without_a_group_gives_no_interval() -> None:
    hole = np.full((2, GROUPS), 0.5)
    hole[0, 3] = np.nan
    assert compare(runs([0.5, 0.5], hole), steady([0.4, 0.4])) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.2], [0.2]), ([0.9, 0.8], [1.0, 1.0]), ([], [])],
)
def test_holms_correction(given: list[float], expected: list[float]) -> None:
    assert adjust(given) == pytest.approx(expected)


def test_folds_are_the_corrected_resampled_t_test() -> None:
    ours, baseline = np.array([0.81, 0.84, 0.80, 0.86, 0.83]), np.array([0.80, 0.81, 0.81, 0.82, 0.80])
    found = compare_folds(ours, baseline)
    assert found is not None
    # Its t is the paired one's, whose variance of the mean is s² / 5, over the root of 5 · (1/5 + 1/4).
    expected = stats.ttest_rel(ours, baseline).statistic / np.sqrt(5 * (1 / 5 + 1 / 4))
    assert found.p_value == pytest.approx(2 * stats.t.sf(expected, 4))
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 4) * found.mean / expected)


def test_over_folds_false_alarms_stay_at_their_level_and_those_of_a_plain_t_test_do_not() -> None:
    """Two ways that are equally good: least squares, each on features of its own that say as much."""
    draw = np.random.default_rng(2)
    rows, folds, tries = 60, 5, 400
    alarms, plain_alarms = 0, 0
    for _ in range(tries):
        features = draw.normal(size=(2, rows, 20))
        labels = np.sign(features.sum((0, 2)) + 3 * draw.normal(size=rows))
        fold = np.arange(rows) % folds
        ways = []
        for own in features:
            right = []
            for test in (fold == number for number in range(folds)):
                weights = np.linalg.lstsq(own[~test], labels[~test], rcond=None)[0]
                right.append(float((np.sign(own[test] @ weights) == labels[test]).mean()))
            ways.append(np.array(right))
        found = compare_folds(*ways)
        alarms += found is not None and found.p_value < 0.05
        plain_alarms += stats.ttest_rel(*ways).pvalue < 0.05
    assert alarms / tries < 0.06 < 0.08 < plain_alarms / tries


def test_folds_that_differ_by_the_same_say_nothing_of_the_error() -> None:
    assert compare_folds(np.array([0.6, 0.7]), np.array([0.5, 0.6])) is None
    found = compare_folds(np.array([0.6, 0.7]), np.array([0.6, 0.7]))
    assert found is not None
    assert (found.mean, found.p_value) == (0.0, 1.0)
