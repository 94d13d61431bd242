"""Alerts and dashboard name what the service tells, and each alert has a line on what to do."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.jobs import repository
from tests.app.jobs.house import House as Rows
from tests.service import AppHouse

ROOT = Path(__file__).parents[1]
RULES = yaml.safe_load((ROOT / "ops" / "alerts.yaml").read_text())
PANELS = json.loads((ROOT / "ops" / "dashboard.json").read_text())["panels"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
QUERIES = {target["expr"]: panel["title"] for panel in PANELS for target in panel["targets"]}

# Prometheus' own: whether a target answered, and by which labels it knows targets and buckets.
FROM_PROMETHEUS = {"up": {"job": {"minimand"}}}
TARGET_LABELS = {"instance", "job"}

Series = Mapping[str, Mapping[str, set[str]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    """Every series that the API tells: by name, the labels and the values that they were seen to have."""
    house = AppHouse(tmp_path_factory.mktemp("ops"))
    house.client.post("/v1/predictions", json={"model": "mdl_1", "input": "x"})
    rows = Rows(house.database)
    rows.add()
    progress = {"step": 1, "step_seconds": 0.1, "memory_bytes": 1, "device": "cpu"}
    rows.run(repository.take_over, rows.must_claim(), [], progress=progress)
    found: dict[str, dict[str, set[str]]] = {name: dict(labels) for name, labels in FROM_PROMETHEUS.items()}
    for family in text_string_to_metric_families(house.client.get("/metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    house.close()
    yield found


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:minimand|process)_\w+|\bup\b", expression))


def check(expression: str, told: Series) -> None:
    """It names series, labels and, where it picks by them, values that there are."""
    assert expression.count("(") == expression.count(")"), expression
    names = names_in(expression)
    assert names, expression
    assert names <= set(told), f"{names - set(told)} in {expression}"
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|=|!=)"([^"]*)"', matchers):
            assert label in told[name], f"{name} has no {label}: {expression}"
            if label != "status":  # which ones came, depends on who asked for what
                wanted = value.split("|") if operator == "=~" else [value]
                assert set(wanted) <= told[name][label], f"{name}{{{label}}} is never {value}: {expression}"
    known = TARGET_LABELS.union(*(told[name] for name in names))
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= known, expression


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_the_form_of_one_and_asks_for_what_there_is(name: str, told: Series) -> None:
    rule = ALERTS[name]
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    check(rule["expr"], told)
    series = set().union(*(told[one] for one in names_in(rule["expr"]))) | TARGET_LABELS
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= series


@pytest.mark.parametrize("name", ALERTS)
def test_what_to_do_about_an_alert_is_written_down(name: str) -> None:
    assert ALERTS[name]["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    found = re.search(rf"^#### {name}\n\n(.+)", OPERATIONS, re.MULTILINE)
    assert found, f"docs/operations.md has no '#### {name}' with a line below it"


def test_the_operations_page_has_no_alert_that_is_none() -> None:
    assert set(re.findall(r"^#### (\w+)$", OPERATIONS, re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("expression", QUERIES, ids=list(QUERIES.values()))
def test_the_dashboard_asks_for_what_there_is(expression: str, told: Series) -> None:
    check(expression, told)


def test_every_series_of_ours_is_explained() -> None:
    text = OPERATIONS + (ROOT / "README.md").read_text()
    source = (ROOT / "app" / "http" / "metrics.py").read_text()
    names = set(re.findall(r'"(minimand_\w+)"', source))
    assert len(names) > 20
    assert {name for name in names if name not in text} == set()


def test_panels_lie_beside_each_other(told: Series) -> None:
    places: set[tuple[int, int]] = set()
    for panel in PANELS:
        place: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places
        assert max(x for x, _ in cells) < 24
        places |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
