"""Runs without a service: a directory with a spec and rows, trained in this process."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ml.artifact.tokenizer import Text
from ml.data.ingest import IngestOptions, ingest
from ml.training.fit import Fitted, fit, publish
from ml.training.machine import Machine
from ml.training.prepare import Prepared, prepare
from ml.training.run import Placement, RunDirectory
from tests.tiny_base import learnable_rows, write_csv

# The same on every machine that runs the tests, with or without a GPU.
MACHINE = Machine(device="cpu", precision="float32", threads=1, micro_batch_tokens=8192)


def lay_out(
    folder: Path,
    *,
    rows: Sequence[Sequence[str]] | None = None,
    headers: Sequence[str] = ("text", "label"),
    columns: dict[str, str] | None = None,
    training: dict[str, Any] | None = None,
    **spec: Any,
) -> RunDirectory:
    """A run directory on the tiny base. `training` and `spec` are laid over a short run's settings.

    columns: roles that are given to headers at upload; without it the run normalises its file by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = write_csv(folder / "data.csv", learnable_rows() if rows is None else rows, headers)
    if columns is not None:
        report = ingest(file, folder / "rows.parquet", IngestOptions(columns=columns))
        (folder / "facts.json").write_text(report.facts.model_dump_json())
    whole = {
        "dataset": "ds_1",
        "model": "tiny",
        "training": {"epochs": 3, "batch_size": 8, "max_length": 32, "precision": "float32", **(training or {})},
        **spec,
    }
    (folder / "spec.json").write_text(json.dumps(whole))
    return RunDirectory(folder)


def prepare_run(run: RunDirectory, base: Path) -> Prepared:
    """All that `fit` needs, with the base registered as `tiny`."""
    return prepare(run, Placement(base_models={"tiny": base}))


def fit_run(
    run: RunDirectory, prepared: Prepared, stop: Callable[[], bool] = lambda: False, machine: Machine = MACHINE
) -> Fitted:
    """Train to the end or until `stop`, as the training program does."""
    return fit(run, prepared, machine, _fingerprint(prepared, machine), stop)


def publish_run(run: RunDirectory, prepared: Prepared) -> Fitted:
    """End at the checkpoint that is there."""
    return publish(run, prepared, MACHINE, _fingerprint(prepared, MACHINE), lambda: False)


def _fingerprint(prepared: Prepared, machine: Machine) -> dict[str, Any]:
    return {"spec": prepared.spec.model_dump(), "machine": machine.as_dict()}


def read_events(run: RunDirectory, kind: str | None = None) -> list[dict[str, Any]]:
    """What the run has told so far, of one kind."""
    file = run.path / "events.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if kind in {None, event["type"]}]


def series(run: RunDirectory, name: str) -> dict[int, float]:
    """One metric by step."""
    told = [event["data"] for event in read_events(run, "metrics")]
    return {data["step"]: data["values"][name] for data in told if name in data["values"]}


def stop_after(run: RunDirectory, step: int) -> Callable[[], bool]:
    """A flag that rises once the run makes this step, from now on."""
    before = len(read_events(run, "metrics"))

    def is_made() -> bool:
        told = [event["data"] for event in read_events(run, "metrics")[before:]]
        return any(data["step"] >= step for data in told if "train/loss" in data["values"])

    return is_made


def trained_logits(prepared: Prepared, texts: Sequence[Text]) -> NDArray[np.float32]:
    """The answers of the network as it was trained, one text at a time."""
    tokens = prepared.tokens.like(prepared.base, texts, prepared.spec.training.max_length)
    answers = []
    with torch.no_grad():
        for row in range(len(texts)):
            inputs = tokens.inputs_of(np.array([row]))
            if prepared.encoder is not None:
                inputs = {"features": prepared.encoder(**inputs)}
            answers.append(prepared.network.eval()(**inputs).logits[0].numpy())
    return np.stack(answers)


def weights_sha256(network: nn.Module) -> str:
    """One digest of every weight, to the bit."""
    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def flip_a_bit(file: Path) -> None:
    """Damage one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
