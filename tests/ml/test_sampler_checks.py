"""Samplers that do not fit are refused with a fix; imbalance that is corrected twice is warned of."""

from typing import Any

import pytest

from tests.ml.datasets import DISTRIBUTIONS, GRADES, LISTS, NUMBERS, Dataset

MANY = [f"intent {i % 20}" for i in range(400)]


def sampled(sampler: Any, **training: Any) -> dict[str, Any]:
    return {"training": {"sampler": sampler, **training}}


def test_rows_are_shuffled_unless_told_otherwise() -> None:
    assert Dataset().resolve().spec.training.sampler.model_dump() == {"type": "shuffle"}


def test_a_bare_name_is_spelled_out() -> None:
    resolved = Dataset(MANY).resolve(**sampled("m_per_class"))
    assert resolved.spec.training.sampler.model_dump() == {"type": "m_per_class", "m": 4}


@pytest.mark.parametrize("name", ["class_balanced", "m_per_class"])
@pytest.mark.parametrize(
    ("cells", "said"),
    [(LISTS, "'multi_label'"), (NUMBERS, "'regression'"), (DISTRIBUTIONS, "distributions over labels")],
)
def test_rows_without_one_label_cannot_be_drawn_by_it(name: str, cells: list[str], said: str) -> None:
    problem = Dataset(cells).refuse(**sampled(name))
    assert (problem.pointer, problem.code) == ("/training/sampler", "sampler_does_not_fit")
    assert said in problem.message
    assert "'shuffle'" in problem.message


def test_levels_are_labels() -> None:
    resolved = Dataset(GRADES).resolve(task={"type": "ordinal"}, loss="coral", **sampled("class_balanced"))
    assert resolved.warnings == ()


@pytest.mark.parametrize(
    ("cells", "m", "batch_size", "fixes"),
    [
        (MANY, 5, 32, ("Set m to 4,", "training.batch_size to 30")),
        (MANY, 32, 32, ("Set m to 16,", "training.batch_size to 64")),
        (MANY, 64, 32, ("Set m to 16,", "training.batch_size to 128")),
        (MANY, 2, 3, ("Set training.batch_size to 4",)),
        (["yes", "no"] * 50, 4, 32, ("Set m to 16,", "training.batch_size to 8")),
        (["a", "b", "c"] * 50, 4, 32, ("Set m to 16,", "training.batch_size to 12")),
    ],
)
def test_a_step_that_cannot_be_divided_so_is_refused_with_what_would_do(
    cells: list[str], m: int, batch_size: int, fixes: tuple[str, ...]
) -> None:
    problem = Dataset(cells).refuse(**sampled({"type": "m_per_class", "m": m}, batch_size=batch_size))
    assert problem.pointer == "/training/sampler/m"
    assert f"'m' is {m}" in problem.message
    for fix in fixes:
        assert fix in problem.message


def test_labels_without_training_rows_do_not_count() -> None:
    split = ["train"] * 60 + ["test"] * 40
    labels = ["a", "b", "c"] * 20 + ["d"] * 40
    problem = Dataset(labels, split=split).refuse(**sampled("m_per_class", batch_size=16))
    assert "takes 4 labels, and 3 have training rows" in problem.message


@pytest.mark.parametrize("name", ["class_balanced", {"type": "m_per_class", "m": 16}])
@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ({"type": "cross_entropy", "class_weights": "balanced"}, "class_weights"),
        ("logit_adjusted", "logit_adjusted"),
        ("ldam", "ldam"),
    ],
)
def test_correcting_imbalance_twice_is_warned_of(name: Any, loss: Any, named: str) -> None:
    (warning,) = Dataset().resolve(loss=loss, **sampled(name)).warnings
    assert named in warning
    assert "Use one" in warning
    assert Dataset().resolve(loss=loss).warnings == ()
    assert Dataset().resolve(loss="focal", **sampled(name)).warnings == ()


def test_rows_that_meet_their_label_by_design_are_not_warned_of() -> None:
    loss = {"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]}
    rare = [f"intent {i % 77}" for i in range(770)]
    assert Dataset(rare).resolve(loss=loss, training={"batch_size": 8}).warnings
    assert Dataset(rare).resolve(loss=loss, **sampled({"type": "m_per_class", "m": 2}, batch_size=8)).warnings == ()
