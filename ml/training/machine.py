"""What the machine does well: device, precision, threads, memory for a forward pass. Decided once a run."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ml.memory import MICRO_BATCH_TOKENS
from ml.specs.job import Training
from ml.training.run import Placement

CONTROL_GROUP = Path("/sys/fs/cgroup")


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


# Padded tokens of one forward pass on a GPU, at most: it is busy then.
GPU_MICRO_BATCH_TOKENS = 65536


def look_around(
    training: Training, placement: Placement, fitting: Callable[[int], int], before: dict[str, Any] | None = None
) -> Machine:
    """Decide for this machine.

    fitting: padded tokens of a forward pass for which so many bytes suffice. before: the decision that a resumed run
    began with, kept where the kind of device is the same.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if before is not None and before["device"] == device:
        return Machine(**before)
    precision = training.precision
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16(device) else "float32"
    most = GPU_MICRO_BATCH_TOKENS if device == "cuda" else MICRO_BATCH_TOKENS
    spare = spare_bytes(device, placement.memory_bytes)
    return Machine(
        device=device,
        precision=precision,
        threads=placement.threads or usable_cores(),
        micro_batch_tokens=most if spare is None else min(most, fitting(spare)),
    )


def spare_bytes(device: str, memory_bytes: int) -> int | None:
    """Memory that this process may still take: of the GPU, or the least of what its limits and the machine leave it.

    memory_bytes: limit on its address space; 0: none. Returns None where nothing tells.
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    left: list[int] = []
    with suppress(OSError):
        told = Path("/proc/meminfo").read_text()
        left += [1024 * int(size) for size in re.findall(r"MemAvailable:\s+(\d+) kB", told)]
    with suppress(OSError):
        if memory_bytes:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            left.append(memory_bytes - pages * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # a container's; "max" where it has none
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        stat = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
        # Files it has read count as taken, and go when memory is wanted.
        taken = int((CONTROL_GROUP / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        left.append(limit - taken)
    return max(0, min(left)) if left else None


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_fast_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32. Without units for it they are slower."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
