"""docs/security.md is true of its proofs: each test that its table names is there, and knows what it is a proof of."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs" / "security.md").read_text().splitlines()
    if line.startswith("| ") and "`tests/" in line
]


def names_of_tests(file: Path) -> list[str]:
    tree = ast.walk(ast.parse(file.read_text()))
    return [node.name for node in tree if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.mark.parametrize("row", ROWS, ids=[row[0].partition(" (")[0] for row in ROWS])
def test_every_row_names_tests_that_are_there_and_know_its_cves(row: list[str]) -> None:
    danger, _, shown_by = row
    proofs = {ROOT / file: re.findall(r"\w+", words) for file, words in re.findall(r"`(\S+\.py)` \((.+?)\)", shown_by)}
    assert len(proofs) == shown_by.count("`tests/"), "a file without words that find its tests"
    for file, words in proofs.items():
        names = names_of_tests(file)
        assert [word for word in words if not any(word in name for name in names)] == [], file
    told = "".join(file.read_text() for file in proofs)
    assert [cve for cve in re.findall(r"CVE-\d+-\d+", danger) if cve not in told] == []


def test_the_table_is_read_whole() -> None:
    rows = (ROOT / "docs" / "security.md").read_text().count("\n| ") - 1  # without its head
    assert len(ROWS) == rows > 10
