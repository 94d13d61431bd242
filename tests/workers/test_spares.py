"""Spare trainers, as processes of their own: when there is one, who gets it, and what ends it.

What a spare does with a run is told in tests/ml/training/test_spare.py.
"""

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
from tests.service import wait_until
from workers import spares as module
from workers.child import TrainerProcess
from workers.spares import Environment, Spares

CPU = {"CUDA_VISIBLE_DEVICES": ""}
GPU = {"CUDA_VISIBLE_DEVICES": "0"}
AT_ONCE_SECONDS = 2


class House:
    """A home with spares, and the trainers that work on its runs."""

    def __init__(self, home: Path, *environments: Environment, nice: int = 0) -> None:
        self.home = home
        self.spares = Spares(environments, home, nice=nice)
        self.at_work: list[TrainerProcess] = []

    def pids(self) -> set[int]:
        """Of its spares."""
        children = psutil.Process().children()
        return {child.pid for child in children if ["--spare", str(self.home)] == _arguments_of(child.pid)[:2]}

    def start_trainer(self, environment: Environment) -> int:
        """The pid of a trainer for a new run."""
        run_directory = self.home / f"run-{len(self.at_work)}"
        run_directory.mkdir()
        self.at_work.append(self.spares.start_trainer(run_directory, environment))
        return self.at_work[-1].pid

    def kill_spare(self) -> int:
        """Kill the only one, and wait until it has died."""
        (pid,) = self.pids()
        os.kill(pid, signal.SIGKILL)
        wait_until_gone({pid}, AT_ONCE_SECONDS)
        return pid

    def close(self) -> None:
        self.spares.stop()
        for trainer in self.at_work:
            trainer.kill()


def _arguments_of(pid: int) -> list[str]:
    """What follows `python -P -m ml.training`."""
    try:
        process = psutil.Process(pid)
        # Its program has begun to take this one's place, and is not known by its arguments yet.
        while not process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)
        return process.cmdline()[4:]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


Keep = Callable[..., House]


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    houses: list[House] = []

    def keep_spares(*environments: Environment, nice: int = 0) -> House:
        houses.append(House(tmp_path, *environments, nice=nice))
        return houses[-1]

    yield keep_spares
    for house in houses:
        house.close()


def test_slots_of_one_environment_share_a_spare(keep: Keep) -> None:
    house = keep(CPU, CPU, GPU)
    house.spares.mend()
    house.spares.mend()
    assert len(house.pids()) == 2
    visible = [psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for pid in house.pids()]
    assert sorted(visible) == ["", "0"]


def test_a_spare_is_found_by_its_arguments_and_leads_a_group_that_steps_back(keep: Keep) -> None:
    house = keep(CPU, nice=1)
    house.spares.mend()
    (pid,) = house.pids()
    assert psutil.Process(pid).cmdline()[1:4] == ["-P", "-m", "ml.training"]
    assert _arguments_of(pid) == ["--spare", str(house.home), str(os.getpid()), "1"]
    assert os.getpgid(pid) == os.getsid(pid) == pid
    wait_until(lambda: psutil.Process(pid).nice() == 1, 30)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        assert group.read_text().split()[1:] == ["nice", "1"]


def test_a_job_gets_the_spare_of_its_environment(keep: Keep) -> None:
    house = keep(CPU, GPU)
    house.spares.mend()
    both = house.pids()
    pid = house.start_trainer(GPU)
    assert pid in both
    assert psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] == "0"


def test_no_spare_is_started_beside_a_job_that_has_just_begun(keep: Keep) -> None:
    house = keep(CPU)
    house.spares.mend()
    working = house.start_trainer(CPU)
    house.spares.mend()  # an idle slot of the same environment
    assert house.pids() == {working}
    house.spares.refill(CPU)
    house.spares.refill(CPU)
    (spare,) = house.pids() - {working}
    assert house.start_trainer(CPU) == spare


def test_a_job_without_a_spare_starts_from_nothing(keep: Keep) -> None:
    house = keep(CPU)
    pid = house.start_trainer(CPU)
    assert _arguments_of(pid) == [str(house.home / "run-0")]


def test_without_environments_there_are_no_spares(keep: Keep) -> None:
    house = keep()
    house.spares.mend()
    pid = house.start_trainer(CPU)
    house.spares.refill(CPU)
    assert _arguments_of(pid) == [str(house.home / "run-0")]
    assert house.pids() == set()


def test_a_spare_that_died_is_not_trusted_with_a_job(keep: Keep) -> None:
    house = keep(CPU)
    house.spares.mend()
    dead = house.kill_spare()
    pid = house.start_trainer(CPU)
    assert pid != dead
    assert _arguments_of(pid) == [str(house.home / "run-0")]


def test_a_spare_that_died_old_is_started_again_and_a_young_one_is_not(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = keep(CPU)
    house.spares.mend()
    house.kill_spare()
    house.spares.mend()
    assert house.pids() == set()
    monkeypatch.setattr(module, "RESTART_AFTER_SECONDS", 0.0)
    house.spares.mend()
    assert len(house.pids()) == 1


def test_stopped_spares_end_at_once_and_no_more_are_started(keep: Keep) -> None:
    house = keep(CPU, GPU)
    house.spares.mend()
    both = house.pids()
    house.spares.stop()
    wait_until_gone(both, timeout_seconds=AT_ONCE_SECONDS)
    house.spares.refill(CPU)
    house.spares.mend()
    assert house.pids() == set()


_KEEPER = """
import pathlib, sys, time
from workers.spares import Spares
spares = Spares([{}], pathlib.Path(sys.argv[1]), nice=1)
spares.mend()
print(spares._spares.popitem()[1].process.pid, flush=True)
time.sleep(600)
"""


def test_a_spare_dies_with_the_worker_that_keeps_it(tmp_path: Path) -> None:
    keeper = subprocess.Popen([sys.executable, "-c", _KEEPER, str(tmp_path)], stdout=subprocess.PIPE)
    assert keeper.stdout is not None
    pid = int(keeper.stdout.readline())
    # It has tied itself before it steps back; one whose parent died still earlier ends when it comes to that.
    wait_until(lambda: psutil.Process(pid).nice() == 1, 30)
    keeper.kill()
    wait_until_gone({pid}, timeout_seconds=AT_ONCE_SECONDS)
    keeper.communicate()
