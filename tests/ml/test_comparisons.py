"""A comparison meets a dataset: one split for all losses, and what cannot be compared is refused."""

from typing import Any

import numpy as np
import pytest

from ml.comparisons import ResolvedComparison, resolve_comparison
from ml.data.splits import Part
from ml.resolve import needed_headers
from ml.specs.comparison import Comparison
from ml.specs.errors import Problem, SpecError
from tests.ml.datasets import GRADES, LABELS, LISTS, NUMBERS, Dataset, base


def resolved(data: Dataset | None = None, **body: Any) -> ResolvedComparison:
    data = data or Dataset()
    given = Comparison.model_validate({"dataset": "ds_1", "losses": ["cross_entropy", "focal"], **body})
    cells = {header: data.cells[header] for header in needed_headers(given, data.facts)}
    return resolve_comparison(given, data.facts, base(), cells)


def refused(data: Dataset | None = None, **body: Any) -> Problem:
    with pytest.raises(SpecError) as caught:
        resolved(data, **body)
    return caught.value.problems[0]


def test_every_loss_and_seed_has_the_same_split() -> None:
    comparison = resolved(training={"seed": 5}, seeds=3)
    assert comparison.seeds == [5, 6, 7]
    parts = [comparison.arm(arm, seed).parts for arm in range(2) for seed in comparison.seeds]
    assert all(np.array_equal(parts[0], other) for other in parts)
    assert comparison.arm(1, 7).spec.training.seed == 7
    assert comparison.arm(1, 7).spec.split.seed == 5


def test_another_split_seed_draws_other_parts() -> None:
    ours, other = (resolved(split={"seed": seed}).arms[0].parts for seed in (1, 2))
    assert not np.array_equal(ours, other)


def test_it_resolves_to_itself() -> None:
    once = resolved(losses=["cross_entropy", "hinge"])
    again = resolved(**once.spec.model_dump(mode="json", exclude={"dataset"}))
    assert again.spec == once.spec


@pytest.mark.parametrize(
    ("cells", "losses", "evaluation"),
    [
        (LABELS, ["cross_entropy", "hinge"], {"calibrate": "platt"}),
        (LABELS, ["cross_entropy", "hinge"], {"thresholds": None}),
        (LISTS, ["bce", "zlpr"], {"thresholds": "f1"}),
        (NUMBERS, ["mse", "mae"], {"calibrate": None}),
    ],
)
def test_what_evaluation_leaves_open_stays_open_for_each_loss(
    cells: list[str], losses: list[str], evaluation: dict[str, Any]
) -> None:
    once = resolved(Dataset(cells), losses=losses, evaluation=evaluation)
    stored = once.spec.model_dump(mode="json", exclude={"dataset"})
    assert stored["evaluation"] == evaluation
    again = resolved(Dataset(cells), **stored)
    assert [arm.spec.evaluation for arm in again.arms] == [arm.spec.evaluation for arm in once.arms]


def test_losses_are_named_by_type_and_numbered() -> None:
    terms = {"terms": [{"loss": "cross_entropy"}, {"loss": "r_drop", "weight": 0.5}]}
    losses = ["focal", {"type": "focal", "gamma": 1.0}, terms]
    assert resolved(losses=losses).spec.names() == ["focal", "focal_2", "cross_entropy+r_drop"]


def test_the_metric_is_the_tasks_own_unless_it_is_named() -> None:
    assert resolved().metric == "macro_f1"
    assert resolved(metric="mcc").metric == "mcc"


def test_a_metric_that_one_loss_lacks_is_refused() -> None:
    problem = refused(losses=["cross_entropy", "hinge"], metric="ece")
    assert (problem.pointer, problem.code) == ("/metric", "unknown_metric")
    assert "hinge" in problem.message


def test_a_fault_in_a_loss_is_found_at_its_place() -> None:
    problem = refused(losses=["cross_entropy", {"type": "cross_entropy", "class_weights": {"positiv": 2.0}}])
    assert problem.pointer.startswith("/losses/1/class_weights")


def test_losses_for_different_tasks_are_refused_until_the_task_is_set() -> None:
    data = Dataset(GRADES)
    problem = refused(data, losses=["cross_entropy", "corn"])
    assert (problem.pointer, problem.code) == ("/task", "different_tasks")
    assert "cross_entropy: text_classification" in problem.message
    assert "corn: ordinal" in problem.message
    comparison = resolved(data, losses=["cross_entropy", "corn"], task={"type": "ordinal"}, metric="mae")
    assert {arm.state.type for arm in comparison.arms} == {"ordinal"}


def test_without_a_test_part_validation_is_measured_and_that_is_said() -> None:
    comparison = resolved(split={"test": 0})
    assert comparison.part == Part.VALIDATION
    assert any("no test part" in warning for warning in comparison.warnings)


def test_without_either_part_it_is_refused() -> None:
    assert refused(split={"test": 0, "validation": 0}).pointer == "/split"


def test_a_warning_of_one_loss_names_it() -> None:
    comparison = resolved(losses=["cross_entropy", "ldam"], tuning="frozen", training={"dropout": 0.1})
    shared = [warning for warning in comparison.warnings if "dropout acts on the head" in warning]
    assert len(shared) == 1
    assert not shared[0].startswith("cross_entropy")


@pytest.mark.parametrize("body", [{"losses": ["focal"]}, {"seeds": 1}, {"seeds": 21}])
def test_limits(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"losses|seeds"):
        resolved(**body)
