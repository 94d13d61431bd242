"""Run directories of bulk work over an exported model, and the child that carries it out."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml.training.run import Placement, RunDirectory
from tests.ml.conftest import Exported
from tests.tiny_base import write_csv

ROOT = Path(__file__).parents[3]


def lay_out(
    folder: Path,
    kind: str,
    exported: Exported,
    rows: Sequence[Sequence[str]],
    headers: Sequence[str] = ("text", "label"),
    **spec: Any,
) -> RunDirectory:
    """A run directory of a kind; `spec` is laid over the least that is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "data.csv", rows, headers)
    (folder / "spec.json").write_text(json.dumps({"model": "mdl_1", "dataset": "ds_1", **spec}))
    placement = Placement.model_validate({"kind": kind, "model": (exported.artifact, exported.runtime), "threads": 1})
    (folder / "run.json").write_text(placement.model_dump_json())
    return RunDirectory(folder)


def run_child(run: RunDirectory, **environment: object) -> int:
    """What a worker does with it: the exit status of a process that cannot import torch."""
    poison = run.path / "poison"
    poison.mkdir(exist_ok=True)
    (poison / "torch.py").write_text("raise AssertionError('this child needs no torch')")
    given = {name: str(value) for name, value in environment.items()}
    return subprocess.run(
        [sys.executable, "-P", "-m", "ml.training", str(run.path)],
        env={**os.environ, "PYTHONPATH": f"{poison}{os.pathsep}{ROOT}", **given},
        check=False,
    ).returncode


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
