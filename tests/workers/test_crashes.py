"""A crash is told by its kind and its place, and never by its message."""

import subprocess
import sys
from pathlib import Path

import pytest

from workers.crashes import read_crash

SECRET = "a user's text"
CRASHES = {
    "plain": f"raise ValueError({SECRET!r})",
    "without a message": "raise ValueError",
    "of several lines": f"raise ValueError('one\\n{SECRET}\\nTypeError: {SECRET}')".replace("user's", "users"),
    "while handling another": f"try:\n    int({SECRET!r})\nexcept ValueError:\n    raise ValueError({SECRET!r})",
}


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_is_told_without_its_message(name: str, tmp_path: Path) -> None:
    program, log = tmp_path / "program.py", tmp_path / "log.txt"
    program.write_text(f"def work():\n    {CRASHES[name].replace(chr(10), chr(10) + '    ')}\n\nwork()\n")
    with log.open("wb") as output:
        output.write(b"2026-01-01 INFO a line before\n")
        output.flush()
        assert subprocess.run([sys.executable, str(program)], stderr=output).returncode == 1
    crash = read_crash(log)
    assert crash is not None
    assert crash.kind == "ValueError"
    assert str(crash).startswith("ValueError at ")
    assert "program.py:" in crash.frames[-1]
    assert crash.frames[-1].endswith("(work)")
    assert "text" not in str(crash) + "".join(crash.frames)


def test_a_log_without_a_crash_tells_of_none(tmp_path: Path) -> None:
    assert read_crash(tmp_path / "none") is None
    (tmp_path / "log.txt").write_text("2026-01-01 INFO all is well\nKilled\n")
    assert read_crash(tmp_path / "log.txt") is None
