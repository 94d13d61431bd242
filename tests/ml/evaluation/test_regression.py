"""Metrics of numbers against their formulas."""

import math

import numpy as np
import pytest

from ml.evaluation.regression import evaluate, report


def test_metrics_equal_their_formulas() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=50)
    values = truth + generator.normal(size=50)
    errors = values - truth
    ranks = [np.argsort(np.argsort(one)) for one in (values, truth)]
    assert evaluate(values, truth) == pytest.approx(
        {
            "mae": np.abs(errors).mean(),
            "rmse": np.sqrt((errors**2).mean()),
            "r2": 1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum(),
            "pearson": np.corrcoef(values, truth)[0, 1],
            "spearman": np.corrcoef(*ranks)[0, 1],
        }
    )


def test_correlations_are_left_out_where_all_answers_are_one() -> None:
    values = evaluate(np.full(3, 2.0), np.array([1.0, 2.0, 3.0]))
    assert values == pytest.approx({"mae": 2 / 3, "rmse": math.sqrt(2 / 3), "r2": 0})


def test_what_a_constant_truth_leaves_undefined_is_left_out() -> None:
    assert evaluate(np.array([1.0, 2.0]), np.ones(2)).keys() == {"mae", "rmse"}
    assert evaluate(np.array([1.0]), np.array([3.0])) == {"mae": 2, "rmse": 2}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [5e-324, 1e-200, 1e-17, 1.0, 1e100])
def test_every_value_is_a_finite_python_float(step: float) -> None:
    values = evaluate(np.array([0.0, 1.0, 2.0, 2.0]), step * np.array([0.0, 1.0, 0.0, 2.0]))
    assert {"mae", "rmse"} <= values.keys()
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


def test_the_report_spreads_errors_by_quantile_with_their_sign() -> None:
    truth = np.zeros(101)
    assert report(np.arange(101) - 60.0, truth) == {
        "quantiles_of_error": pytest.approx({"0.05": -55, "0.25": -35, "0.5": -10, "0.75": 15, "0.95": 35}),
        "rows": 101,
    }


def test_no_rows_are_refused_by_name() -> None:
    for measure in (evaluate, report):
        with pytest.raises(ValueError, match="truth has no rows"):
            measure(np.zeros(0), np.zeros(0))
