"""The gap of a metric is that between its highest and its lowest group."""

from ml.evaluation.groups import Gap, gaps


def test_it_names_the_groups_it_lies_between() -> None:
    found = gaps({"a": {"f1": 0.5, "mae": 1.0}, "b": {"f1": 0.75, "mae": 3.0}, None: {"f1": 0.25, "mae": 2.0}})
    assert found == {"f1": Gap(0.5, None, "b"), "mae": Gap(2.0, "a", "b")}


def test_a_metric_that_only_one_group_has_has_no_gap() -> None:
    assert gaps({"a": {"f1": 0.5, "mcc": 0.1}, "b": {"f1": 0.5}}) == {"f1": Gap(0.0, "a", "a")}
    assert gaps({"a": {"f1": 0.5}}) == gaps({}) == {}
