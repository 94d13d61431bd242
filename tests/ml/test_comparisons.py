"""A comparison meets a dataset: one split for all losses, and what cannot be compared is refused."""

from typing import Any

import numpy as np
import pytest

from ml.comparisons import ResolvedComparison, resolve_comparison
from ml.data.splits import LEFT_OUT, Part
from ml.resolve import needed_headers
from ml.specs.comparison import Comparison
from ml.specs.errors import Problem, SpecError
from tests.ml.datasets import GRADES, GROUPS, LABELS, LISTS, NUMBERS, Dataset, base


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


@pytest.mark.parametrize("runs", [{"seeds": 2}, {"folds": 3}])
def test_losses_that_would_split_groups_otherwise_are_refused_until_the_column_is_set(runs: dict[str, Any]) -> None:
    data, losses = Dataset(group=[f"author {i % 20}" for i in range(100)]), ["cross_entropy", "group_dro"]
    problem = refused(data, losses=losses, **runs)
    assert (problem.pointer, problem.code) == ("/split/group_column", "different_splits")
    comparison = resolved(data, losses=losses, split={"group_column": "group"}, **runs)
    assert np.array_equal(*(arm.parts for arm in comparison.arms))


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


@pytest.mark.parametrize("body", [{"losses": []}, {"seeds": 1}, {"seeds": 21}, {"folds": 1}, {"folds": 21}])
def test_limits(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"losses|seeds|folds"):
        resolved(**body)


# --------------------------------------------------------------------------------------------------------------- folds


def test_every_loss_has_the_same_folds_and_each_fold_a_seed_of_its_own() -> None:
    comparison = resolved(folds=4, training={"seed": 5})
    assert comparison.seeds == [5, 6, 7, 8]
    ours, other = ([comparison.arm(arm, seed) for seed in comparison.seeds] for arm in range(2))
    assert all(np.array_equal(mine.parts, yours.parts) for mine, yours in zip(ours, other, strict=True))
    assert [run.spec.training.seed for run in ours] == comparison.seeds
    assert {run.spec.split.seed for run in ours} == {5}
    tested = sum((run.parts == Part.TEST).astype(int) for run in ours)
    assert (tested == 1).all()
    assert comparison.arm(0, 6).train_counts == {"negative": 20, "neutral": 27, "positive": 20}


def test_folds_resolve_to_themselves() -> None:
    once = resolved(folds=4, losses=["focal"])
    assert (once.spec.seeds, once.spec.split.test) == (None, 0)
    again = resolved(**once.spec.model_dump(mode="json", exclude={"dataset"}))
    assert again.spec == once.spec
    assert all(np.array_equal(again.arm(0, seed).parts, once.arm(0, seed).parts) for seed in once.seeds)


def test_a_regression_is_standardized_by_the_rows_that_train() -> None:
    comparison = resolved(Dataset(NUMBERS), losses=["mse"], folds=3)
    assert len({comparison.arm(0, seed).state.shift for seed in comparison.seeds}) == 3


def test_one_loss_needs_folds() -> None:
    problem = refused(losses=["focal"])
    assert (problem.pointer, problem.code) == ("/losses", "one_loss")
    assert "`folds`" in problem.message
    assert resolved(losses=["focal"], folds=2).warnings == []


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"folds": 5, "seeds": 5}, "/seeds", "'seeds' is 5 and 'folds' is 5"),
        ({"folds": 5, "split": {"test": 0.2}}, "/split/test", "'test' is 0.2, but the 5 folds are the test parts"),
        ({"folds": 5, "split": {"validation": 0}, "training": {"early_stopping": {}}}, "/training/early_stopping", ""),
    ],
)
def test_what_does_not_go_with_folds_is_refused(body: dict[str, Any], pointer: str, words: str) -> None:
    problem = refused(**body)
    assert problem.pointer == pointer
    assert words in problem.message


def test_more_folds_than_rows_or_groups_are_refused() -> None:
    problem = refused(Dataset(["a", "b"] * 3), folds=7)
    assert (problem.pointer, "only 6 rows" in problem.message) == ("/folds", True)
    problem = refused(Dataset(author=GROUPS), folds=5, split={"group_column": "author"})
    assert (problem.pointer, "only 4 groups" in problem.message) == ("/folds", True)
    resolved(Dataset(author=GROUPS), folds=4, split={"group_column": "author"})


def test_a_label_with_fewer_rows_than_folds_is_warned_of() -> None:
    rare, empty = resolved(Dataset([*LABELS, "rare"]), folds=3).warnings
    assert rare == "label 'rare' has fewer rows than the 3 folds, so some folds hold none of it."
    assert empty.startswith("in fold ")
    assert "'rare'" in empty
    problem = refused(Dataset([*LABELS, "rare"]), folds=3, losses=["logit_adjusted"])
    assert problem.pointer.startswith("/losses/0")
    assert "label 'rare' has 0 training rows" in problem.message


def test_what_becomes_of_the_datasets_own_parts_is_said() -> None:
    comparison = resolved(Dataset(split=(["train"] * 8 + ["validation", "test"]) * 10), folds=3)
    assert (comparison.arms[0].parts == LEFT_OUT).sum() == 10
    left_out, drawn = comparison.warnings
    assert left_out.startswith("the 10 rows of the dataset's own test part are left out")
    assert drawn.startswith("the 10 rows of the dataset's own validation part are cut into folds")
