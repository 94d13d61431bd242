"""What the machine does well: device, precision, threads, memory for a forward pass. Decided once a run."""

import os
import re
import resource
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ml.cores import usable_cores
from ml.memory import MICRO_BATCH_TOKENS
from ml.specs.errors import refuse
from ml.specs.job import Training
from ml.training.run import Placement

CONTROL_GROUP = Path("/sys/fs/cgroup")

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """How a run uses its machine. It goes into every checkpoint: another cut or precision gives other bits."""

    device: str
    precision: str  # float32, bfloat16 or float16, of the forward pass
    threads: int
    micro_batch_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @property
    def is_asynchronous(self) -> bool:
        """Whether it works on while others do: who asks it for a number waits for all it was given before."""
        return self.device != "cpu"

    def autocast(self) -> torch.autocast:
        """The context of a training forward pass."""
        half = HALVES.get(self.precision)
        return torch.autocast(self.device, half, enabled=half is not None)

    def grad_scaler(self) -> GradScaler:
        """What keeps small gradients from being 0 in float16; for other precisions it does nothing."""
        return GradScaler(self.device, enabled=self.precision == "float16")

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device. A GPU copies it when it gets there: nobody waits."""
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def peak_bytes(self) -> int:
        """The most memory that this process has held: of the GPU, or of the machine."""
        if self.device == "cuda":
            return torch.cuda.max_memory_reserved()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def put_each(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same of tensors by name, such as a network's inputs."""
        return {name: self.put(tensor) for name, tensor in tensors.items()}


# Padded tokens of one forward pass on a GPU, at most: it is busy then.
GPU_MICRO_BATCH_TOKENS = 65536


def look_around(
    training: Training, placement: Placement, fitting: Callable[[int], int], before: dict[str, Any] | None = None
) -> Machine:
    """Decide for this machine.

    fitting: padded tokens of a forward pass for which so many bytes suffice. before: the decision that a resumed run
    began with, kept where the kind of device is the same. Raises SpecError for a precision that the device lacks.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if before is not None and before["device"] == device:
        return Machine(**before)
    precision: str = training.precision
    if precision == "auto":
        precision = fastest_precision(device)
    elif precision == "float16" and device == "cpu":
        raise refuse(
            "/training/precision",
            "'precision' is \"float16\", which is for GPUs, and this worker has none: a CPU without units for it takes "
            "18 times as long as in float32, and one that has them does bfloat16 as well. Take auto.",
        )
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


def fastest_precision(device: str) -> str:
    """What a device multiplies matrices fastest in, bfloat16 before float16: it needs no scaling."""
    if has_fast_bfloat16(device):
        return "bfloat16"
    # Since Volta a GPU has units for float16. Some before it take 64 times as long as in float32.
    return "float16" if device == "cuda" and torch.cuda.get_device_capability() >= (7, 0) else "float32"


def has_fast_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32. Without units for it they are slower."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
