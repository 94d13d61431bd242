"""Runs the networks' files by torch on one GPU: in half precision, with fused attention, as CUDA graphs."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.inference.backends import Backend, EngineError, Feeds, OnnxBackend, Outputs
from ml.inference.torch_backend.program import Network, Program, UnknownOperatorError

log = logging.getLogger(__name__)

# A program is kept for each number of rows and each length, so both are rounded up to few.
LENGTH_STEP = 32
PROGRAMS = 128  # of one network; those not used longest go first

Shapes = tuple[tuple[int, ...], ...]


class TorchEngine:
    """One device, which does one pass at a time."""

    reads_int8 = False
    passes = 1

    def __init__(self, device: str, threads: int) -> None:
        """device: as torch calls it; on a CPU everything is float32, for tests. threads: of the CPU, for what the
        device cannot run. Raises EngineError.
        """
        self._threads = threads
        self.device = torch.device(device)
        self.dtype = torch.float32
        if self.device.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver may be too old for any
            if (self.device.index or 0) >= count:
                raise EngineError(f"torch {torch.__version__} sees {count} GPUs")
            with torch.cuda.device(self.device):
                has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            self.dtype = torch.bfloat16 if has_bf16 else torch.float16
        self._lock = threading.Lock()

    def open(self, file: Path) -> Backend:
        """See `Engine`."""
        try:
            network = Network(file)
        except UnknownOperatorError as error:
            log.warning("%s is run by onnxruntime, on the CPU: %s", file, error)
            return OnnxBackend(file, self._threads)
        with self._lock:
            network.move(self.device, self.dtype)
        return TorchBackend(network, self._lock)


class TorchBackend:
    """One network on the device."""

    length_step = LENGTH_STEP

    def __init__(self, network: Network, lock: threading.Lock) -> None:
        """lock: of the device."""
        self._network, self._lock = network, lock
        self.inputs, self.bytes = network.inputs, network.bytes
        self.is_exact = network.dtype == torch.float32
        self._programs: OrderedDict[Shapes, Program] = OrderedDict()
        # Of all its CUDA graphs: an output is read before the next of them runs, so they may work in the same memory,
        # and take their inputs from the same.
        self._pool = torch.cuda.graph_pool_handle() if network.device.type == "cuda" else None
        self._held: dict[str, Tensor] = {}

    def run(self, feeds: Feeds, *, alone: bool) -> Outputs:
        """See `Backend`."""
        del alone  # a pass has the whole device in any case
        rows = max(len(array) for array in feeds.values())
        padded = 1 << (rows - 1).bit_length()
        given = {name: torch.from_numpy(_repeat_first(feeds[name], rows, padded)) for name in self.inputs}
        with self._lock, torch.inference_mode():
            inputs = {name: self._place(tensor) for name, tensor in given.items()}
            outputs: NDArray[np.float32] = self._program(inputs)(**inputs)[:rows].cpu().numpy()
        return outputs

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._network.device, self._network.dtype if tensor.is_floating_point() else tensor.dtype)

    def _program(self, inputs: Mapping[str, Tensor]) -> Program:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        program = self._programs.pop(shapes, None)
        if program is None:
            program = self._network.program(inputs)
            if self._pool is not None:
                held = {name: self._hold(name, tensor) for name, tensor in inputs.items()}
                program = _Captured(program, held, self._network.device, self._pool)
        self._programs[shapes] = program
        if len(self._programs) > PROGRAMS:
            self._programs.popitem(last=False)
        return program

    def _hold(self, name: str, tensor: Tensor) -> Tensor:
        """A copy, in memory that programs of all shapes share; the largest so far says how much that is."""
        buffer = self._held.get(name)
        if buffer is None or buffer.numel() < tensor.numel():
            buffer = self._held[name] = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        return buffer[: tensor.numel()].view(tensor.shape).copy_(tensor)


class _Captured:
    """A program as a CUDA graph: the CPU starts it once instead of each of its kernels."""

    def __init__(self, program: Program, inputs: Mapping[str, Tensor], device: torch.device, pool: Any) -> None:
        """inputs: where those of each call will lie. pool: of memory, which graphs of one network share."""
        self._program = program  # the graph reads the program's tensors where they lie, and keeps none of them
        self._inputs = inputs
        self._graph = torch.cuda.CUDAGraph()
        clear_workspaces: Any = torch._C._cuda_clearCublasWorkspaces
        with torch.cuda.device(device):
            others: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            others.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(others):  # what a first run sets up must not be captured
                program(**self._inputs)
            torch.cuda.current_stream().wait_stream(others)
            # cuBLAS keeps a workspace for each stream, and all captures use one: it would be taken from the pool of the
            # first network, and go with it while graphs of others still write there (pytorch issue 193402).
            clear_workspaces()
            # Relaxed: another thread may free a graph meanwhile, as of a model that was dropped.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="relaxed"):
                self._output = program(**self._inputs)
            clear_workspaces()

    def __call__(self, **inputs: Tensor) -> Tensor:
        """The output is overwritten by the next call."""
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._output


def _repeat_first(array: NDArray[np.int64] | NDArray[np.float32], rows: int, padded: int) -> NDArray[np.generic]:
    """(padded, …) of (rows, …); what all rows have in common, (1, …), stays so."""
    if len(array) != rows:
        return array
    return np.concatenate([array, np.broadcast_to(array[:1], (padded - rows, *array.shape[1:]))])
