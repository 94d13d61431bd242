"""What the machine does well: device, precision, threads, memory for a forward pass. Decided once a run."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ml.specs.job import Training


@dataclass(frozen=True)
class Machine:
    """How a run uses its machine. It goes into every checkpoint: another cut or precision gives other bits."""

    device: str
    precision: str  # float32 or bfloat16, of the forward pass
    threads: int
    micro_batch_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def autocast(self) -> torch.autocast:
        """The context of a training forward pass."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")


# Padded tokens of one forward pass. 32 rows of 128 tokens fit whole; past that a bigger pass gains no speed on a CPU
# and costs memory (measured on MiniLM, 2 cores).
CPU_MICRO_BATCH_TOKENS = 8192
GPU_MICRO_BATCH_TOKENS = 65536


def look_around(training: Training, threads: int, before: dict[str, Any] | None = None) -> Machine:
    """Decide for this machine. threads: 0 takes every core this process may run on.

    before: the decision that a resumed run began with, kept where the kind of device is the same.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if before is not None and before["device"] == device:
        return Machine(**before)
    precision = training.precision
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return Machine(
        device=device,
        precision=precision,
        threads=threads or usable_cores(),
        micro_batch_tokens=GPU_MICRO_BATCH_TOKENS if device == "cuda" else CPU_MICRO_BATCH_TOKENS,
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_fast_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32. Without units for it they are slower."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
