"""Weights by label against scikit-learn and the paper's formula."""

import numpy as np
import pytest

from ml.specs.losses.base import EffectiveNumber
from ml.tasks.class_weights import weigh_labels

LABELS = ("a", "b", "c")
COUNTS = {"a": 5, "b": 60, "c": 35}


def test_none_weighs_nothing() -> None:
    assert weigh_labels(None, LABELS, COUNTS) is None


def test_named_weights_stand_in_the_order_of_the_labels() -> None:
    weights = weigh_labels({"c": 3.0, "a": 1.0, "b": 0.0}, LABELS, COUNTS)
    assert weights is not None
    assert weights.tolist() == [1.0, 0.0, 3.0]


def test_balanced_equals_scikit_learn() -> None:
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    cells = [label for label, rows in COUNTS.items() for _ in range(rows)]
    expected = class_weight.compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(cells))
    np.testing.assert_allclose(weigh_labels("balanced", LABELS, COUNTS), expected, rtol=1e-15)


def test_balanced_weighs_every_label_the_same_in_all() -> None:
    weights = weigh_labels("balanced", LABELS, COUNTS)
    assert weights is not None
    np.testing.assert_allclose(weights * list(COUNTS.values()), np.full(3, 100 / 3))


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_effective_number_follows_its_formula_with_mean_one(beta: float) -> None:
    weights = weigh_labels(EffectiveNumber(scheme="effective_number", beta=beta), LABELS, COUNTS)
    assert weights is not None
    assert weights.mean() == pytest.approx(1, rel=1e-12)
    effective = [sum(beta**k for k in range(rows)) for rows in COUNTS.values()]  # (1 − β^n)/(1 − β), term by term
    np.testing.assert_allclose(weights / weights[0], effective[0] / np.array(effective), rtol=1e-9)


def test_effective_number_runs_from_equal_weights_to_those_of_balanced() -> None:
    equal = weigh_labels(EffectiveNumber(scheme="effective_number", beta=0), LABELS, COUNTS)
    np.testing.assert_allclose(equal, np.ones(3))
    steep = weigh_labels(EffectiveNumber(scheme="effective_number", beta=1 - 1e-8), LABELS, COUNTS)
    balanced = weigh_labels("balanced", LABELS, COUNTS)
    assert steep is not None
    assert balanced is not None
    np.testing.assert_allclose(steep, balanced / balanced.mean(), rtol=1e-5)
