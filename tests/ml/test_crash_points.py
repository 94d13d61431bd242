"""A point kills the process that comes by it once, and only if its file names it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml.crash_points import POINTS

ROOT = Path(__file__).parents[2]
PROGRAM = "from ml.crash_points import crash_point; crash_point('a.b'); print('past it')"


def run(file: Path | None) -> "subprocess.CompletedProcess[str]":
    environment = {} if file is None else {"MINIMAND_CRASH_FILE": str(file)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_an_armed_point_kills_once(tmp_path: Path) -> None:
    file = tmp_path / "crash"
    file.write_text("a.b")
    assert run(file).returncode == -9
    assert not file.exists()
    assert run(file).stdout == "past it\n"


@pytest.mark.parametrize("armed", ["a.c", "a.", ""])
def test_another_points_name_is_left_alone(tmp_path: Path, armed: str) -> None:
    file = tmp_path / "crash"
    file.write_text(armed)
    assert run(file).stdout == "past it\n"
    assert file.read_text() == armed


def test_without_the_variable_nothing_happens() -> None:
    assert run(None).stdout == "past it\n"


def test_every_point_in_the_code_is_in_the_table_and_the_other_way_round() -> None:
    named = set()
    for package in ("app", "ml", "workers"):
        for file in (ROOT / package).rglob("*.py"):
            named |= set(re.findall(r'crash_point\(f?"([^"]+)"\)', file.read_text()))
    steps = {name.replace("{kind}", "") for name in named if "{kind}" in name}
    table = {point for points in POINTS.values() for point in points}
    folders = {point for point in table if f".{point.split('.')[1]}" in steps}
    assert {point.split(".")[1] for point in folders} == {step.removeprefix(".") for step in steps}
    assert named - {name for name in named if "{kind}" in name} == table - folders
