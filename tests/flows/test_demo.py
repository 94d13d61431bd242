"""`minimand demo`: what a newcomer sees, on a file of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import wait_until_gone
from tests.service import RunningService, tickets


def _run(*arguments: str, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINIMAND_")}
    command = [sys.executable, "-P", "-m", "app.cli", "demo", "--home", str(home), "--port", "0", *arguments]
    environment |= {"DEMO_EXIT": "1", "COLUMNS": "160"}
    environment |= {"MINIMAND_POLL_SECONDS": "1", "MINIMAND_TRAINER_NICE": "0", "MINIMAND_TRAINER_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home.parent, check=False)


def test_the_demo_trains_on_a_file_of_the_users_own_and_leaves_nothing_running(tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    data.write_bytes(tickets(84, text="what they wrote", label="what it is"))
    done = _run("--data", str(data), "--text", "what they wrote", "--label", "what it is", home=tmp_path / "home")
    shown = done.stdout
    assert done.returncode == 0, shown + done.stderr
    assert "84 rows, 3 labels" in shown
    assert '{"type": "focal", "gamma": 2.0}' in shown
    assert re.search(r"accuracy +[01]\.\d{4}", shown)
    assert re.search(r"macro_f1 +[01]\.\d{4}", shown)
    assert len(re.findall(r"(?m)^  (?:delivery|other|refund) [01]\.\d\d  \S", shown)) == 3
    assert re.search(r"Docs +http://127\.0\.0\.1:\d+/docs", shown)
    assert done.stderr == ""
    wait_until_gone(RunningService(tmp_path / "home", has_tiny_base=False).processes(), timeout_seconds=10)


def test_the_demo_says_what_is_wrong_with_a_file_and_leaves_nothing_running(tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    data.write_bytes(tickets(10))
    done = _run("--data", str(data), "--label", "lable", home=tmp_path / "home")
    assert done.returncode == 1
    assert "there is no column 'lable'. Did you mean 'label'?" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    wait_until_gone(RunningService(tmp_path / "home", has_tiny_base=False).processes(), timeout_seconds=10)
