"""`python -m ml.training --spare …` as a process of its own: once told a run directory, it is a trainer like any."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from ml.artifact.manifest import verify_folder
from ml.training.errors import ExitCode
from ml.training.run import RunDirectory
from tests.ml.conftest import export
from tests.ml.runs import lay_out, prepare_run, read_events, series

REPOSITORY = Path(__file__).parents[3]
# 6 steps an epoch: long enough to be stopped on the way.
TRAINING: dict[str, Any] = {"epochs": 12, "optimizer": {"type": "adamw", "learning_rate": 1e-3}}


class Spare:
    """A spare, and the end of its standard input that keeps it alive."""

    def __init__(self, home: Path, *, parent_pid: int | None = None, nice: int = 0) -> None:
        words = ["--spare", str(home), str(parent_pid or os.getpid()), str(nice)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ml.training", *words],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def give(self, run: RunDirectory) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run.path}\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Wait for the exit status, standard input open, and what it wrote before it had a run."""
        assert self.process.stdout is not None
        return self.process.wait(120), self.process.stdout.read()


@pytest.fixture
def spares(tmp_path: Path) -> Iterator[list[Spare]]:
    """Those a test started; none outlives it."""
    started: list[Spare] = []
    yield started
    for spare in started:
        spare.process.kill()
        spare.process.wait()
        for pipe in (spare.process.stdin, spare.process.stdout):
            assert pipe is not None
            pipe.close()


def place(folder: Path, tiny_base: Path, machine: dict[str, Any] | None = None, **options: Any) -> RunDirectory:
    """A run of a service on this machine: `machine` goes into its run.json."""
    run = lay_out(folder, **options)
    placement = {"base_models": {"tiny": str(tiny_base)}, "threads": 1, "parent_pid": os.getpid(), **(machine or {})}
    (run.path / "run.json").write_text(json.dumps(placement))
    return run


def test_spares_stop_resume_and_end_as_trainers_that_were_started_at_the_run(
    tmp_path: Path, tiny_base: Path, spares: list[Spare]
) -> None:
    whole = place(tmp_path / "whole", tiny_base, training=TRAINING)
    export(whole, prepare_run(whole, tiny_base))  # the same in this process

    run = place(tmp_path / "run", tiny_base, {"nice": 3}, training=TRAINING)
    spares += [Spare(tmp_path, nice=3) for _ in range(2)]
    first, second = spares
    first.give(run)
    while not series(run, "train/loss"):
        assert first.process.poll() is None, first.end()
        time.sleep(0.01)
    assert psutil.Process(first.process.pid).nice() == 3, "once for the process, not once more for the run"
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == (ExitCode.STOPPED, "")
    assert "stopped at step" in (run.path / "log.txt").read_text()

    second.give(run)
    assert second.end() == (ExitCode.DONE, "")
    (resumed,) = read_events(run, "status")
    assert resumed["data"]["step"] > 0
    weights = [verify_folder(one.artifact)["files"]["model.safetensors"] for one in (whole, run)]
    assert weights[0] == weights[1]


def test_the_memory_limit_of_a_run_holds_though_the_imports_are_done(
    tmp_path: Path, tiny_base: Path, spares: list[Spare]
) -> None:
    run = place(tmp_path / "run", tiny_base, {"memory_bytes": 600_000_000})
    spares.append(Spare(tmp_path))
    spares[0].give(run)
    assert spares[0].end() == (ExitCode.OUT_OF_MEMORY, "")
    assert json.loads((run.path / "error.json").read_text())["code"] == "out_of_memory"


def test_sigterm_ends_an_idle_spare(tmp_path: Path, spares: list[Spare]) -> None:
    spares.append(Spare(tmp_path))
    spares[0].process.terminate()
    assert spares[0].end() == (-signal.SIGTERM, "")


def test_the_end_of_its_input_ends_a_spare(tmp_path: Path, spares: list[Spare]) -> None:
    spares.append(Spare(tmp_path))
    assert spares[0].process.stdin is not None
    spares[0].process.stdin.close()
    assert spares[0].end() == (-signal.SIGKILL, "")


def test_a_spare_of_a_worker_that_is_gone_ends(tmp_path: Path, spares: list[Spare]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    spares.append(Spare(tmp_path, parent_pid=gone.pid))
    status, said = spares[0].end()
    assert status == 1
    assert f"{gone.pid} is gone" in said


_LATE_IMPORTS = """
import importlib, json, sys, threading
from ml.training.__main__ import _train
from ml.training.run import RunDirectory
from ml.training.spare import NEEDED
from pathlib import Path
for module in NEEDED:
    importlib.import_module(module)
before = set(sys.modules)

class UntilTheFirstStep(RunDirectory):
    def tell(self, kind, *_, **__):
        if kind == "metrics":
            print(json.dumps(sorted(set(sys.modules) - before)))
            sys.exit()

run = UntilTheFirstStep(Path(sys.argv[1]))
_train(run, run.read_placement(), threading.Event())
"""


def test_a_spare_has_imported_what_its_first_step_needs(tmp_path: Path, tiny_base: Path) -> None:
    run = place(tmp_path / "run", tiny_base, training={"max_steps": 1})
    done = subprocess.run(
        [sys.executable, "-c", _LATE_IMPORTS, str(run.path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    late = json.loads(done.stdout)
    # A file format or a model's own class may come late, but no library with all that it brings.
    assert len(late) < 100, late
