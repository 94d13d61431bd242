"""minimand.json: what a model is and how its scores are read. Serving reads it and never guesses."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ml.tasks.agreement import Agreement
from ml.tasks.base import Task
from ml.tasks.build import TaskState, build_task

DESCRIPTION = "minimand.json"
ONNX, INT8, HEAD = "model.onnx", "model.int8.onnx", "head.safetensors"

# Fixed texts, of no user, that every artifact carries its answers to: lengths and scripts vary.
PROBE_TEXTS = (
    "ok",
    "The parcel came a day early and everything in it was intact.",
    "¿Dónde está mi pedido? Lo espero desde el lunes.",
    "订单还没有发货，请帮我查一下。",
    "Numbers: 3.14, 2,000 and 10^6; e-mail a@b.example; #tag 🙂",
    "a long line " * 60,
)


class Probe(BaseModel):
    """The trained network's answers to PROBE_TEXTS, in float32."""

    logits: list[list[float]]
    tolerance: float  # the largest difference a loaded model may show


class Serving(BaseModel):
    """How a model is served, and why so."""

    format: Literal["onnx-float32", "onnx-int8"] = Field(description="In both, an answer doesn't depend on its batch.")
    reason: str
    agreement: Agreement | None = Field(default=None, description="Of int8 with float32, where they were compared.")
    float32_layers: list[str] = Field(default=[], description="Layers that int8 leaves in float32.")


EARLIER = Serving(format="onnx-float32", reason="it was exported in float32 alone")  # before there was int8


class Source(BaseModel):
    """The checkpoint that an artifact was made of."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    checkpoint_id: str
    step: int


class Answering(BaseModel):
    """What answering from an artifact takes, without what only people read: a loaded model keeps this much of it."""

    format_version: Literal[1] = 1
    task: TaskState  # labels, how outputs are read, calibration, thresholds
    max_length: int
    pad_id: int
    inputs: list[str]  # of the ONNX file, in its order
    head: Literal["native", "linear", "cosine"]  # the latter two: over the shared encoder's vectors
    probe: Probe
    int8_probe: list[list[float]] | None = None  # the int8 file's own answers to PROBE_TEXTS
    serving: Serving = EARLIER

    def build_task(self) -> Task:
        """The task, which decodes outputs."""
        return build_task(self.task)


class Description(Answering):
    """What an artifact says of itself."""

    model_config = ConfigDict(extra="forbid")

    base_model: str
    base_sha256: str
    loads_in_transformers: bool
    metrics: dict[str, dict[str, float]]
    report: dict[str, Any]
    spec: dict[str, Any]
    dataset_sha256: str | None
    source: Source | None = None  # none where a training ended by itself
    train_rows: int
    versions: dict[str, str]


def read_answering(folder: Path) -> Answering:
    """Read what it takes to answer from an artifact."""
    return Answering.model_validate_json((folder / DESCRIPTION).read_bytes())


def read_description(folder: Path) -> Description:
    """Read an artifact's description."""
    return Description.model_validate_json((folder / DESCRIPTION).read_bytes())


def write_description(folder: Path, description: Description) -> None:
    """Write it."""
    text = json.dumps(description.model_dump(), indent=1, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
