"""What a worker works on: a slot for each visible GPU, or one for the CPU; one for short work; one for bulk work.

Torch-free.
"""

import itertools
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from app.jobs.states import BULK_KINDS, BULK_QUEUE, SHORT_KINDS, SHORT_QUEUE
from ml.specs.job import JobKind


@dataclass(frozen=True)
class Slot:
    """Room for one job at a time."""

    name: str
    queues: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[JobKind, ...] = ("training", "comparison")


# Every worker has it beside its training slots, so that a dry run does not wait for hours. It leaves the GPUs to them.
SHORT_SLOT = Slot("short", (SHORT_QUEUE,), {"CUDA_VISIBLE_DEVICES": ""}, SHORT_KINDS)

# So that neither waits for the other. Its children never import torch: they take no spare trainer, and see no GPU.
BULK_SLOT = Slot("bulk", (BULK_QUEUE,), {}, BULK_KINDS)


def plan_slots(devices: str, *, list_gpus: Callable[[], list[str]]) -> list[Slot]:
    """The training slots of a worker. devices: auto, cpu, or GPU numbers such as "0,1"."""
    if devices == "cpu":
        gpus: list[str] = []
    elif devices == "auto":
        gpus = list_gpus()
    else:
        gpus = [number.strip() for number in devices.split(",") if number.strip()]
    if not gpus:
        # An empty list hides the GPUs of a machine that has some.
        return [Slot("cpu", ("cpu",), {"CUDA_VISIBLE_DEVICES": ""})]
    # What runs on a CPU runs on a GPU: with default settings a machine that has GPUs must not leave jobs waiting.
    return [Slot(f"gpu-{gpu}", ("gpu", "cpu"), {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus]


def visible_gpus() -> list[str]:
    """GPUs this process may use: those of CUDA_VISIBLE_DEVICES if it is set, else all that the driver lists."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        named = [gpu.strip() for gpu in visible.split(",")]
        # CUDA reads this list up to the first entry that names no device; "-1" is how it is said that there is none.
        return list(itertools.takewhile(lambda gpu: gpu and not gpu.startswith("-"), named))
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607 - wherever the driver put it
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
