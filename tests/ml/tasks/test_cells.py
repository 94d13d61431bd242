"""Label cells as they were uploaded: their kind, and each parsed or refused, never a crash."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.tasks.cells import count_labels, kind_of_cells, to_distribution, to_list, to_number

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
HUGE_INTEGERS = st.integers(min_value=10**308, max_value=10**400)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["yes", "no"], "names"),
        (["1", "two"], "names"),
        (["1", "-2.5", "1e3"], "numbers"),
        (["nan", "1"], "names"),
        (['["a"]', "[]"], "lists"),
        (["[a]", '["a"]'], "names"),
        (['{"a": 1}', ' {"b": 2}'], "distributions"),
        (['{"a": 1}', '["a"]'], "names"),
    ],
)
def test_the_kind_of_a_column_follows_from_its_cells(cells: list[str], kind: str) -> None:
    assert kind_of_cells(cells) == kind


@given(st.lists(st.text() | JSON.map(json.dumps), min_size=1, max_size=5))
def test_any_cells_have_a_kind(cells: list[str]) -> None:
    assert kind_of_cells(cells) in {"names", "lists", "distributions", "numbers"}


@given(st.text() | JSON.map(json.dumps) | HUGE_INTEGERS.map(str) | HUGE_INTEGERS.map(lambda n: f'{{"a": {n}}}'))
def test_any_cell_is_parsed_or_none(cell: str) -> None:
    number, names, distribution = to_number(cell), to_list(cell), to_distribution(cell)
    assert number is None or math.isfinite(number)
    assert names is None or all(isinstance(name, str) for name in names)
    if distribution is not None:
        assert sum(distribution.values()) == pytest.approx(1)
        assert min(distribution.values()) >= 0


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_being_text(number: float) -> None:
    assert to_number(str(number)) == number


@pytest.mark.parametrize("cell", ["", "nan", "inf", "-Infinity", "1e999", "one", "1,5"])
def test_what_is_no_finite_number_is_none(cell: str) -> None:
    assert to_number(cell) is None


@given(st.lists(st.text()))
def test_a_list_of_names_survives_being_json(names: list[str]) -> None:
    assert to_list(json.dumps(names)) == names


@pytest.mark.parametrize("cell", ["", "a", '"a"', "null", "{}", "[1.5]", "[[]]", "[null]", '["a"', "[" * 100_000])
def test_what_is_no_list_of_names_is_none(cell: str) -> None:
    assert to_list(cell) is None


def test_whole_numbers_in_a_list_are_names() -> None:
    assert to_list('[1, "2"]') == ["1", "2"]


@given(st.dictionaries(st.text(), st.integers(0, 1000), min_size=1).filter(lambda votes: any(votes.values())))
def test_votes_become_shares(votes: dict[str, int]) -> None:
    total = sum(votes.values())
    expected = {name: count / total for name, count in votes.items()}
    assert to_distribution(json.dumps(votes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "",
            "{}",
            "[]",
            '{"a": 0}',
            '{"a": 2, "b": -1}',
            '{"a": NaN}',
            '{"a": Infinity}',
            '{"a": null}',
            '{"a": "x"}',
        ),
        *('{"a": 1e308, "b": 1e308}', f'{{"a": 1{"0" * 400}}}'),
    ],
)
def test_what_is_no_distribution_is_none(cell: str) -> None:
    assert to_distribution(cell) is None


def test_labels_are_counted_as_each_kind_means_it() -> None:
    assert count_labels("names", ["a", "b", "a"]) == {"a": 2, "b": 1}
    assert count_labels("lists", ['["a", "b", "a"]', "[]", '["a"]']) == {"a": 2, "b": 1}
    cells = ['{"a": 1, "b": 3}', '{"b": 1, "c": 0}']
    assert count_labels("distributions", cells) == {"a": 0, "b": 2, "c": 0}


@pytest.mark.parametrize("cell", ["", "b", "{}", "[]", '{"a": 0}', '{"a": null}'])
def test_a_cell_of_another_kind_counts_for_no_label(cell: str) -> None:
    assert count_labels("distributions", ['{"a": 1}', cell]) == {"a": 1}
    assert count_labels("lists", ['["a"]', cell]) == {"a": 1}
