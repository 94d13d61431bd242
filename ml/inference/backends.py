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

    def run(self, feeds: Feeds, *, alone: bool) -> Outputs:
        """(N, …) of inputs (N, T), and of an adapter's tensors, (N, …) or (1, …) for all rows.

        alone: nothing else runs, so that the pass may take every core.
        """


class OnnxBackend:
    """A file by onnxruntime on the CPU.

    A pass runs on the thread that asks for it, so that as many run at once as there are cores: MiniLM answers twice as
    many rows a second that way as one pass after the other, each spread over two cores, whose threads wait for each
    other after every operator. A pass that is alone is spread where that was measured to be faster.
    """

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
