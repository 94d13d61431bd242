"""What runs a network's file. It knows arrays, and no texts, tasks or models."""

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Outputs = NDArray[np.float32]
Feeds = Mapping[str, NDArray[np.int64] | NDArray[np.float32]]

# Two sessions are kept where the one that takes every core answers a row in this share of the other's time.
WORTH_ITS_MEMORY = 0.8
# Memory of a session over its file's size, measured of MiniLM: 1.1 to 1.4 in float32, 1.3 to 1.7 in int8, of which
# there is less.
SESSION_FACTOR = 1.5
_MEASURED_TOKENS, _REPEATS = 24, 7


class Backend(Protocol):
    """One network, ready to run, by any number of threads at once."""

    @property
    def inputs(self) -> Sequence[str]:
        """Of `input_ids`, `attention_mask`, `token_type_ids` those that it takes, and the tensors of an adapter."""

    @property
    def bytes(self) -> int:
        """About the memory that it holds."""

    @property
    def is_exact(self) -> bool:
        """Whether it computes in float32, or in a precision with which scores come out a little different."""

    @property
    def length_step(self) -> int:
        """Of rows padded to a multiple of it passes are fastest."""

    def run(self, feeds: Feeds, *, alone: bool) -> Outputs:
        """(N, …) of inputs (N, T), and of an adapter's tensors, (N, …) or (1, …) for all rows.

        alone: nothing else runs, so that the pass may take every core.
        """


class Engine(Protocol):
    """Opens the files of networks on one device."""

    @property
    def reads_int8(self) -> bool:
        """Whether it runs int8 files."""

    @property
    def passes(self) -> int:
        """How many passes it runs at one time."""

    def open(self, file: Path) -> Backend:
        """The network of an ONNX file."""


class EngineError(Exception):
    """There is no such device, or nothing that runs networks on it."""


def open_engine(device: str, threads: int) -> Engine:
    """onnxruntime for the cpu, torch for cuda or cuda:1. threads: of the CPU. Raises EngineError."""
    if device == "cpu":
        return OnnxEngine(threads)
    from ml.inference.torch_backend.backend import TorchEngine  # torch takes seconds and 200 MB: none without a GPU

    return TorchEngine(device, threads)


class OnnxEngine:
    """onnxruntime on the CPU."""

    reads_int8 = True

    def __init__(self, threads: int) -> None:
        """threads: passes at one time, or threads of one that is alone."""
        self.passes = threads

    def open(self, file: Path) -> "OnnxBackend":
        """See `Engine`."""
        return OnnxBackend(file, self.passes)


class OnnxBackend:
    """A file by onnxruntime on the CPU.

    A pass runs on the thread that asks for it, so that as many run at once as there are cores: MiniLM answers twice as
    many rows a second that way as one pass after the other, each spread over two cores, whose threads wait for each
    other after every operator. A pass that is alone is spread where that was measured to be faster.
    """

    is_exact = True  # of what the file holds
    length_step = 1

    def __init__(self, file: Path, threads: int) -> None:
        """threads: that a pass alone may take."""
        self._narrow = open_session(file, 1)
        self.inputs = [given.name for given in self._narrow.get_inputs()]
        self._wide = self._narrow
        if threads > 1:
            wide = open_session(file, threads)
            if self._seconds(wide) < WORTH_ITS_MEMORY * self._seconds(self._narrow):
                self._wide = wide
        self.bytes = int(SESSION_FACTOR * file.stat().st_size) * len({self._narrow, self._wide})

    def run(self, feeds: Feeds, *, alone: bool) -> Outputs:
        """See `Backend`."""
        (outputs,) = (self._wide if alone else self._narrow).run(None, feeds)
        return np.asarray(outputs, np.float32)

    def _seconds(self, session: onnxruntime.InferenceSession) -> float:
        """What one row takes: what else the machine does makes a pass longer, never shorter, so the fastest counts."""
        feeds: dict[str, Any] = {name: np.ones((1, _MEASURED_TOKENS), np.int64) for name in self.inputs}
        feeds |= no_adapter(session)
        seconds = []
        for _ in range(_REPEATS):
            begun = time.perf_counter()
            session.run(None, feeds)
            seconds.append(time.perf_counter() - begun)
        return min(seconds)


def no_adapter(session: onnxruntime.InferenceSession) -> dict[str, NDArray[np.float32]]:
    """Zeros in the place of an adapter: the layers of a shared network do what they do without one."""
    return {
        given.name: np.zeros([extent if isinstance(extent, int) else 1 for extent in given.shape], np.float32)
        for given in session.get_inputs()
        if given.type == "tensor(float)"
    }


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU. threads: of a pass; 0 takes every core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait for an operator's next part spin while a pass runs, but take no core from others after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@cache
def _share_arena() -> None:
    """Let all sessions take what their passes need from one arena: each would keep what its largest pass took."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)
