"""The supervisor, with real processes. Each test runs one in a program of its own and reads what its children write."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.conftest import wait_until_gone

# Every child writes "name event pid" lines to the journal; what it does is told by the words after its name.
_CHILD = """
import os, signal, subprocess, sys, time
from app.supervisor import tie_to_supervisor
journal, name, *ways = sys.argv[1:]
def say(event, pid=os.getpid()):
    with open(journal, "a") as file:
        file.write(f"{name} {event} {pid}\\n")
def stop(number, frame):
    say(signal.Signals(number).name)
    time.sleep(0.2)
    say("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in ways else stop)
signal.signal(signal.SIGINT, stop)
tie_to_supervisor(signal.SIGKILL)
if "parent" in ways:
    say("grandchild", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
say("started")
if "failing" in ways:
    sys.exit(3)
while True:
    time.sleep(60)
"""

_SUPERVISOR = """
import json, logging, sys
from app.supervisor import ChildSpec, Supervisor
logging.basicConfig(format="%(message)s")
children = [ChildSpec(name, [sys.executable, "-c", *arguments]) for name, arguments in json.loads(sys.argv[1])]
sys.exit(Supervisor(children, stop_timeout_seconds=1).run())
"""


class _Run:
    """A supervisor with children, and the journal they write."""

    def __init__(self, folder: Path, **children: str) -> None:
        self._journal = folder / "journal"
        self._journal.touch()
        specs = [(name, [_CHILD, str(self._journal), name, *ways.split()]) for name, ways in children.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SUPERVISOR, json.dumps(specs)], stderr=subprocess.PIPE, text=True
        )

    def events(self) -> list[str]:
        return [" ".join(line.split()[:2]) for line in self._journal.read_text().splitlines()]

    def pids(self) -> set[int]:
        return {int(line.split()[2]) for line in self._journal.read_text().splitlines()}

    def wait_for(self, *events: str) -> None:
        _wait_until(lambda: all(self.events().count(event) >= events.count(event) for event in events))

    def end(self) -> str:
        """Wait for the supervisor's end and return what it logged."""
        return self.process.communicate(timeout=10)[1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., _Run]]:
    runs: list[_Run] = []

    def start_run(**children: str) -> _Run:
        runs.append(_Run(tmp_path, **children))
        return runs[-1]

    yield start_run
    for run in runs:
        run.process.kill()
        run.process.communicate()
        for pid in filter(psutil.pid_exists, run.pids()):
            os.kill(pid, signal.SIGKILL)


def _wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_in_reverse_order_and_returns_zero(start: Callable[..., _Run], number: signal.Signals) -> None:
    run = start(first="", second="", third="")
    run.wait_for("first started", "second started", "third started")
    run.process.send_signal(number)
    run.end()
    assert run.process.returncode == 0
    stops = [event for event in run.events() if not event.endswith("started")]
    assert stops == [f"{name} {event}" for name in ("third", "second", "first") for event in ("SIGTERM", "stopped")]
    wait_until_gone(run.pids(), timeout_seconds=5)


def test_starts_a_dead_child_again_and_says_how_it_died(start: Callable[..., _Run]) -> None:
    run = start(steady="", failing="failing")
    run.wait_for("steady started", "failing started", "failing started", "failing started")
    assert run.events().count("steady started") == 1
    run.process.terminate()
    log = run.end()
    # Half a second, then twice that.
    assert "failing ended by itself with exit status 3; it is started again in 0.5 s" in log
    assert "failing ended by itself with exit status 3; it is started again in 1 s" in log
    assert run.process.returncode == 0


def test_starts_a_killed_child_again_and_leaves_no_grandchild_behind(start: Callable[..., _Run]) -> None:
    run = start(child="parent")
    run.wait_for("child started")
    first = run.pids()
    os.kill(psutil.Process(run.process.pid).children()[0].pid, signal.SIGKILL)
    run.wait_for("child started", "child started")
    wait_until_gone(first, timeout_seconds=5)
    run.process.terminate()
    assert "child ended by itself with signal SIGKILL" in run.end()
    wait_until_gone(run.pids(), timeout_seconds=5)


def test_kills_a_child_that_does_not_stop_in_time(start: Callable[..., _Run]) -> None:
    run = start(other="", deaf="deaf parent")
    run.wait_for("other started", "deaf started")
    run.process.terminate()
    assert "deaf did not stop within 1 s and is killed" in run.end()
    assert run.process.returncode == 0
    assert run.events()[-1] == "other stopped"
    wait_until_gone(run.pids(), timeout_seconds=5)


def test_second_request_kills_at_once(start: Callable[..., _Run]) -> None:
    run = start(other="", deaf="deaf parent")
    run.wait_for("other started", "deaf started")
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    run.process.send_signal(signal.SIGINT)
    run.end()
    assert run.process.returncode == 1
    assert "other stopped" not in run.events()
    wait_until_gone(run.pids(), timeout_seconds=5)


def test_the_same_request_sent_twice_in_a_moment_counts_once(start: Callable[..., _Run]) -> None:
    run = start(child="")
    run.wait_for("child started")
    run.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    run.process.send_signal(signal.SIGTERM)
    run.end()
    assert run.process.returncode == 0
    assert "child stopped" in run.events()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_killing_the_supervisor_takes_its_children_down_within_two_seconds(start: Callable[..., _Run]) -> None:
    run = start(first="", deaf="deaf")
    run.wait_for("first started", "deaf started")
    run.process.kill()
    run.process.wait()
    wait_until_gone(run.pids(), timeout_seconds=2)


def test_an_idle_supervisor_uses_no_processor_time(start: Callable[..., _Run]) -> None:
    run = start(child="")
    run.wait_for("child started")
    time.sleep(0.2)
    supervisor = psutil.Process(run.process.pid)
    before = sum(supervisor.cpu_times()[:2])
    time.sleep(1)
    assert sum(supervisor.cpu_times()[:2]) - before <= 0.02


def test_a_process_whose_parent_is_already_gone_ends_at_once() -> None:
    code = f"from ml.lifeline import tie_to_parent; tie_to_parent({os.getpid()} + 1); print('alive')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "is gone" in ended.stderr


def test_the_end_of_stdin_is_noticed() -> None:
    code = "import os, time; from ml.lifeline import watch_stdin; watch_stdin(lambda: os._exit(7)); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"anything\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.stdin.close()
        assert process.wait(10) == 7
