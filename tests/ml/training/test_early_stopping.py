"""Patience: which epoch was best, and when to stop."""

import pytest

from ml.specs.job import EarlyStopping
from ml.training.early_stopping import Patience


def observe(spec: EarlyStopping, values: list[float]) -> tuple[list[bool], list[bool], Patience]:
    """What patience says of each value: best so far, and over."""
    patience = Patience()
    best, over = [], []
    for i, value in enumerate(values):
        best.append(patience.observe(spec, value, step=(i + 1) * 10))
        over.append(patience.is_over(spec))
    return best, over, patience


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_score_is_better_the_higher(metric: str) -> None:
    spec = EarlyStopping.model_validate({"metric": metric, "patience": 2})
    best, over, patience = observe(spec, [0.5, 0.6, 0.6, 0.4])
    assert best == [True, True, False, False]
    assert over == [False, False, False, True]
    assert (patience.best, patience.best_step) == (0.6, 20)


def test_a_loss_is_better_the_lower() -> None:
    best, over, patience = observe(EarlyStopping(metric="loss", patience=1), [1.0, 0.5, 0.7])
    assert best == [True, True, False]
    assert over == [False, False, True]
    assert (patience.best, patience.best_step) == (0.5, 20)


def test_a_change_of_min_delta_or_less_is_no_improvement() -> None:
    spec = EarlyStopping(metric="accuracy", patience=2, min_delta=0.25)
    best, over, patience = observe(spec, [0.5, 0.75, 0.625])
    assert best == [True, False, False]
    assert over == [False, False, True]
    assert patience.best == 0.5


def test_an_improvement_starts_the_count_again() -> None:
    _, over, _ = observe(EarlyStopping(metric="accuracy", patience=2), [0.5, 0.4, 0.6, 0.5, 0.5])
    assert over == [False, False, False, False, True]
