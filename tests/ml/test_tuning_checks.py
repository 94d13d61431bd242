"""A tuning meets a base model: what is filled in, and what cannot work."""

from typing import Any

import pytest

from tests.ml.datasets import Dataset, base


@pytest.mark.parametrize(("layers", "is_fine"), [(1, True), (6, True), (7, False)])
def test_as_many_layers_train_as_there_are(layers: int, is_fine: bool) -> None:
    tuning = {"type": "top_layers", "layers": layers}
    if is_fine:
        assert Dataset().resolve(tuning=tuning).spec.tuning.model_dump() == tuning
    else:
        problem = Dataset().refuse(tuning=tuning)
        assert problem.pointer == "/tuning/layers"
        assert "'layers' is 7, and base model 'small' has 6" in problem.message


OF_LAYERS: list[dict[str, Any]] = [{"type": "top_layers"}]


@pytest.mark.parametrize("tuning", OF_LAYERS, ids=str)
def test_a_base_whose_layers_cannot_be_told_apart_is_for_other_tunings(tuning: dict[str, Any]) -> None:
    problem = Dataset().refuse(base(model_type="albert", linear_layers=()), tuning=tuning)
    assert (problem.pointer, problem.code) == ("/tuning/type", "unknown_architecture")
    assert "'small' (albert)" in problem.message
    assert "full or frozen" in problem.message


@pytest.mark.parametrize("width", [384, 768])
def test_top_layers_learn_at_the_rate_of_full_tuning(width: int) -> None:
    rates = {
        Dataset().resolve(base(hidden_size=width), tuning=tuning).spec.training.optimizer.learning_rate
        for tuning in ("full", "top_layers")
    }
    assert len(rates) == 1
