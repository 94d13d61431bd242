"""Pointers, near misses, and values shown as their author wrote them."""

import pytest

from ml.specs.errors import Problem, SpecError, did_you_mean, pointer, refuse, show


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([], ""),
        (["loss", "type"], "/loss/type"),
        (["task", "labels", 0], "/task/labels/0"),
        (["metadata", "a/b"], "/metadata/a~1b"),
        (["metadata", "a~b"], "/metadata/a~0b"),
        (["metadata", "~1"], "/metadata/~01"),
        (["metadata", ""], "/metadata/"),
    ],
)
def test_a_pointer_escapes_as_rfc_6901_says(path: list[object], expected: str) -> None:
    assert pointer(path) == expected


def test_a_near_miss_is_named_and_a_far_one_is_not() -> None:
    assert did_you_mean("focal_los", ["cross_entropy", "focal"]) == " Did you mean 'focal'?"
    assert did_you_mean("zebra", ["cross_entropy", "focal"]) == ""
    assert did_you_mean(5, ["cross_entropy", "focal"]) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (True, "true"),
        (None, "null"),
        ("猫", '"猫"'),
        (["a", 1], '["a", 1]'),
    ],
)
def test_a_value_is_shown_as_json(value: object, expected: str) -> None:
    assert show(value) == expected


def test_a_long_value_is_cut_to_a_readable_length() -> None:
    shown = show("x" * 1000)
    assert len(shown) <= 80
    assert shown.endswith("…")


def test_an_error_says_every_problem_with_its_place() -> None:
    error = SpecError([Problem("/a", "is wrong."), Problem("/b", "too.")])
    assert str(error) == "/a: is wrong.; /b: too."
    assert refuse("/a", "is wrong.", "bad").problems == (Problem("/a", "is wrong.", "bad"),)
