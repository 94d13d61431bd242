"""`python -m ml.training RUN_DIR` as a process of its own, with no service around it: how it ends, what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml.artifact.description import read_description
from ml.artifact.manifest import verify_folder
from ml.training.errors import ExitCode
from ml.training.run import RunDirectory
from tests.ml.conftest import export
from tests.ml.runs import lay_out, prepare_run, read_events, series

REPOSITORY = Path(__file__).parents[3]
# 6 steps an epoch: long enough to be stopped on the way.
TRAINING: dict[str, Any] = {"epochs": 12, "optimizer": {"type": "adamw", "learning_rate": 1e-3}}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ml.training", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the exit status and what was written to standard error."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path) -> Callable[..., RunDirectory]:
    """Lays out a run on this machine; `machine` goes into its run.json."""

    def lay(name: str, machine: dict[str, Any] | None = None, **options: Any) -> RunDirectory:
        run = lay_out(tmp_path / name, **options)
        placement = {"base_models": {"tiny": str(tiny_base)}, "threads": 1, **(machine or {})}
        (run.path / "run.json").write_text(json.dumps(placement))
        return run

    return lay


def read_error(run: RunDirectory) -> dict[str, Any]:
    error: dict[str, Any] = json.loads((run.path / "error.json").read_text())
    assert error["type"] == "job_error"
    return error


def test_a_run_that_is_stopped_goes_on_where_it_was_and_ends_as_one_that_was_not(
    place: Callable[..., RunDirectory], tiny_base: Path
) -> None:
    whole = place("whole", training=TRAINING)
    export(whole, prepare_run(whole, tiny_base))  # the same in this process

    stopped = place("stopped", training=TRAINING)
    process = start(stopped.path)
    while not series(stopped, "train/loss"):
        assert process.poll() is None, end(process)
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, errors = end(process)
    assert code == ExitCode.STOPPED == 75, errors
    assert not stopped.artifact.exists()
    (checkpoint,) = stopped.checkpoints.iterdir()
    assert 0 < verify_folder(checkpoint)["step"] < 72

    process = start(stopped.path)
    assert process.stderr is not None
    while "finished after" not in process.stderr.readline():  # from here on there is nothing left to stop
        assert process.poll() is None
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    code, errors = end(process)
    assert code == ExitCode.DONE == 0, errors
    assert not (stopped.path / "error.json").exists()
    assert read_description(stopped.artifact).task.labels == ["delivery", "other", "refund"]
    (resumed,) = read_events(stopped, "status")
    assert resumed["data"]["checkpoint"] == checkpoint.name
    files = verify_folder(stopped.artifact)["files"]
    assert files["model.safetensors"] == verify_folder(whole.artifact)["files"]["model.safetensors"]


def test_a_spec_that_cannot_be_trained_says_what_is_wrong_with_it(place: Callable[..., RunDirectory]) -> None:
    run = place("run", loss={"type": "focal", "gamma": -1})
    code, errors = end(start(run.path))
    assert code == ExitCode.BAD_INPUT == 79, errors
    error = read_error(run)
    assert (error["code"], error["param"]) == ("invalid_spec", "/loss/gamma")
    assert "at least 0" in error["message"]
    assert not run.artifact.exists()


def test_a_run_that_exceeds_its_memory_limit_says_so(place: Callable[..., RunDirectory]) -> None:
    run = place("run", machine={"memory_bytes": 600_000_000})
    code, errors = end(start(run.path))
    assert code == ExitCode.OUT_OF_MEMORY == 77, errors
    error = read_error(run)
    assert error["code"] == "out_of_memory"
    assert "max_length" in error["message"]


def test_a_loss_that_diverges_has_an_end_of_its_own(place: Callable[..., RunDirectory]) -> None:
    run = place("run", training={"optimizer": {"type": "sgd", "learning_rate": 1e9}})
    code, errors = end(start(run.path))
    assert code == ExitCode.NON_FINITE_LOSS == 78, errors
    error = read_error(run)
    assert error["code"] == "non_finite_loss"
    assert re.search(r"at step \d+, in cross_entropy\. Lower .*learning_rate", error["message"])
    assert not run.artifact.exists()


@pytest.mark.parametrize("arguments", [[], ["one", "two"], ["/no/such/folder"]])
def test_wrong_use_is_told_the_right_one(arguments: list[str]) -> None:
    code, errors = end(start(*arguments))
    assert code == 2
    assert "usage: python -m ml.training RUN_DIR" in errors
