"""Ranking figures against scikit-learn, ties and all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from ml.evaluation import ranking

ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]) | st.floats(-1e6, 1e6), st.booleans()),
    min_size=2,
    max_size=30,
)


@given(ROWS.filter(lambda rows: len({has_it for _, has_it in rows}) == 2))
def test_one_label_equals_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    scores, there = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    values = ranking.evaluate(scores[:, None], there[:, None])
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(there, scores), abs=1e-9)
    assert values["average_precision"] == pytest.approx(metrics.average_precision_score(there, scores), abs=1e-9)


@pytest.mark.parametrize("digits", [1, 3, 16])
def test_several_labels_are_averaged_as_scikit_learn_does(digits: int) -> None:
    generator = np.random.default_rng(digits)
    there = generator.random((500, 12)) < np.linspace(0.01, 0.9, 12)
    scores = np.round(generator.normal(size=(500, 12)) + there, digits)
    values = ranking.evaluate(scores, there)
    assert values["roc_auc"] == pytest.approx(metrics.roc_auc_score(there, scores), abs=1e-9)
    assert values["average_precision"] == pytest.approx(metrics.average_precision_score(there, scores), abs=1e-9)


def test_labels_that_all_rows_have_or_none_are_left_out() -> None:
    scores = np.array([[0.1, 0.9, 0.3], [0.8, 0.2, 0.4]])
    values = ranking.evaluate(scores, np.array([[False, True, False], [True, True, False]]))
    assert values == {"roc_auc": 1.0, "average_precision": 1.0}
    assert ranking.evaluate(scores, np.ones((2, 3), bool)) == {}
