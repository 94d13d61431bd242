"""Which column plays which role: what the user says, else the first name that is known."""

import pytest

from ml.specs.errors import Problem, SpecError
from ml.specs.facts import Columns, recognise_columns


def refuse(headers: list[str], given: dict[str, str]) -> Problem:
    with pytest.raises(SpecError) as caught:
        recognise_columns(headers, given)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["text", "label"], Columns(text="text", label="label")),
        (["id", "Sentence ", "CLASS"], Columns(text="Sentence ", label="CLASS")),
        (["review", "rating", "split"], Columns(text="review", label="rating", split="split")),
        (["sentence1", "sentence2", "label"], Columns(text="sentence1", text_pair="sentence2", label="label")),
        (["premise", "hypothesis"], Columns(text="premise", text_pair="hypothesis")),
        (["content"], Columns(text="content")),
        (["label", "labels", "text"], Columns(text="text", label="label")),
        (["review", "text"], Columns(text="text")),  # the order of known names decides, not the file's
        (["text", "Text", "label"], Columns(text="text", label="label")),  # the first of two alike
        (["text", "group"], Columns(text="text")),  # a group is only ever named by the user
    ],
)
def test_known_names_are_recognised(headers: list[str], expected: Columns) -> None:
    columns, recognised = recognise_columns(headers, {})
    assert columns == expected
    assert set(recognised) == {role for role, header in expected.model_dump().items() if header is not None}


def test_a_given_column_wins_and_does_not_count_as_recognised() -> None:
    columns, recognised = recognise_columns(["text", "body", "label"], {"text": "body"})
    assert columns == Columns(text="body", label="label")
    assert recognised == ["label"]


def test_a_column_that_was_given_a_role_is_not_recognised_for_another() -> None:
    columns, _ = recognise_columns(["text", "label", "class"], {"group": "label"})
    assert columns == Columns(text="text", group="label", label="class")


def test_an_unknown_role_is_refused() -> None:
    problem = refuse(["text"], {"lable": "text"})
    assert (problem.pointer, problem.code) == ("/columns/lable", "unknown_field")
    assert "Did you mean 'label'?" in problem.message


def test_a_column_that_is_not_there_is_refused() -> None:
    problem = refuse(["text", "category"], {"label": "categry"})
    assert (problem.pointer, problem.code) == ("/columns/label", "unknown_column")
    assert "Did you mean 'category'?" in problem.message


def test_one_column_cannot_have_two_roles() -> None:
    problem = refuse(["text", "label"], {"text": "text", "label": "text"})
    assert (problem.pointer, problem.code) == ("/columns/label", "duplicate_column")


def test_a_file_without_a_text_column_is_told_how_to_name_one() -> None:
    problem = refuse(["utterance", "intent"], {})
    assert (problem.pointer, problem.code) == ("/columns/text", "missing_column")
    assert 'columns={"text": "utterance"}' in problem.message
