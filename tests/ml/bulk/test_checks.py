"""What keeps a model from being measured on a dataset is said, with its place."""

from typing import Any

import pytest

from ml.bulk.checks import MOST_GROUPS, Selection, check_pairs, group_of, needed_headers, select_rows
from ml.specs.bulk import ModelEvaluation
from ml.specs.errors import SpecError
from ml.specs.facts import Columns, DatasetFacts
from ml.tasks.build import TaskState

ONE_LABEL = TaskState(type="text_classification", reading="softmax", labels=["no", "yes"])
SEVERAL = TaskState(type="multi_label", reading="sigmoid", labels=["cold", "wet"])
A_NUMBER = TaskState(type="regression", reading="identity")


def facts_of(cells: dict[str, list[str | None]]) -> DatasetFacts:
    roles = {role: role for role in ("label", "split") if role in cells}
    return DatasetFacts.model_construct(
        rows=len(next(iter(cells.values()))), headers=["text", *cells], columns=Columns(text="text", **roles)
    )


def select(cells: dict[str, list[str | None]], task: TaskState = ONE_LABEL, **spec: Any) -> Selection:
    facts = facts_of(cells)
    asked = ModelEvaluation(model="mdl_1", dataset="ds_1", **spec)
    assert set(needed_headers(asked, facts)) <= set(cells)
    return select_rows(asked, facts, cells, task)


@pytest.mark.parametrize(
    ("cells", "task", "spec", "param", "code"),
    [
        ({"other": ["a"]}, ONE_LABEL, {}, "/dataset", "no_labels"),
        ({"label": ["yes"]}, ONE_LABEL, {"part": "test"}, "/part", "no_split"),
        ({"label": ["yes"], "split": ["train"]}, ONE_LABEL, {"part": "test"}, "/part", "nothing_to_measure"),
        ({"label": [None, " "]}, ONE_LABEL, {}, "/dataset", "nothing_to_measure"),
        ({"label": ["yes"], "lang": ["en"]}, ONE_LABEL, {"group_column": "lnag"}, "/group_column", "unknown_column"),
        ({"label": ["yes", "maybe"]}, ONE_LABEL, {}, "/dataset", "unknown_labels"),
        ({"label": ['{"yes": 1, "maybe": 2}']}, ONE_LABEL, {}, "/dataset", "unknown_labels"),
        ({"label": ['["yes"]']}, ONE_LABEL, {}, "/dataset", "wrong_task"),
        ({"label": ["cold"]}, SEVERAL, {}, "/dataset", "wrong_task"),
        ({"label": ['["cold"]', '["hot"]']}, SEVERAL, {}, "/dataset", "unknown_labels"),
        ({"label": ["1.5", "much"]}, A_NUMBER, {}, "/dataset", "wrong_task"),
        (
            {"label": ["yes"] * (MOST_GROUPS + 1), "id": [str(row) for row in range(MOST_GROUPS + 1)]},
            ONE_LABEL,
            {"group_column": "id"},
            "/group_column",
            "too_many_groups",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(cells: Any, task: TaskState, spec: Any, param: str, code: str) -> None:
    with pytest.raises(SpecError) as refused:
        select(cells, task, **spec)
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.code) == (param, code)


def test_an_unknown_label_is_named_with_those_that_are_known() -> None:
    with pytest.raises(SpecError, match=r"holds 'maybe', which the model doesn't know. It knows: 'no', 'yes'"):
        select({"label": ["yes", "maybe"]})


@pytest.mark.parametrize(("text_pair", "takes_pairs"), [("second", True), (None, False)])
def test_a_model_is_asked_for_what_it_was_trained_on(text_pair: str | None, takes_pairs: bool) -> None:
    columns = Columns(text="text", text_pair=text_pair)
    check_pairs(columns, takes_pairs=takes_pairs)
    with pytest.raises(SpecError) as caught:
        check_pairs(columns, takes_pairs=not takes_pairs)
    (problem,) = caught.value.problems
    assert problem.pointer == "/dataset"
    assert problem.code == ("single_text_expected" if text_pair else "pair_expected")


def test_only_the_labels_of_the_part_count() -> None:
    selection = select({"label": ["maybe", "yes", None], "split": ["train", "test", "test"]}, part="test")
    assert (sorted(selection.asked), selection.labels) == ([1, 2], {1: "yes"})  # type: ignore[call-overload]


def test_distributions_measure_a_model_of_one_label_too() -> None:
    selection = select({"label": ['{"yes": 3, "no": 1}']})
    assert (selection.kind, selection.task.is_soft) == ("distributions", True)
    assert not select({"label": ["yes"]}, ONE_LABEL.model_copy(update={"is_soft": True})).task.is_soft


@pytest.mark.parametrize(("cell", "group"), [("en", "en"), ("", None), ("  ", None), (None, None)])
def test_rows_without_a_group_are_a_group(cell: str | None, group: str | None) -> None:
    assert group_of(cell) == group
