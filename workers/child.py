"""One training process: started in its own group, tied to this worker's life, asked to stop, killed.

It may be started before there is work for it. It knows processes, not jobs.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# The kernel's parent-death signal fires when the thread that made a child ends. This one lives as long as the worker.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawner")


class TrainerProcess:
    """`python -m ml.training`, running: at a run, or as a spare that waits to be given one."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], nice: int, output: BinaryIO | None
    ) -> None:
        self._process = _SPAWNER.submit(self._spawn, arguments, environment, output).result()
        _step_back(self._process.pid, nice)

    @classmethod
    def start(cls, run_directory: Path, environment: Mapping[str, str], nice: int) -> "TrainerProcess":
        """At a run, from nothing."""
        with (run_directory / "log.txt").open("ab") as log:
            return cls([str(run_directory)], environment, nice, log)

    @classmethod
    def start_spare(cls, home: Path, environment: Mapping[str, str], nice: int) -> "TrainerProcess":
        """Without work. It is told the home for those who look for our processes by their arguments."""
        return cls(["--spare", str(home), str(os.getpid()), str(nice)], environment, nice, None)

    @staticmethod
    def _spawn(
        arguments: Sequence[str], environment: Mapping[str, str], output: BinaryIO | None
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            # -P: a folder named `ml` where the operator happens to stand must not be taken for ours.
            [sys.executable, "-P", "-m", "ml.training", *arguments],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            bufsize=0,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def give(self, run_directory: Path) -> bool:
        """Set a spare to work on a run. False where it has died."""
        assert self._process.stdin is not None
        if self.poll() is not None:
            return False
        try:
            self._process.stdin.write(f"{run_directory}\n".encode())
        except BrokenPipeError:
            return False
        return True

    def poll(self) -> int | None:
        """The exit status once it has ended; negative for a signal."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM: write a checkpoint and end."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> int:
        """End the whole group at once, and return the status."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        return status


def _step_back(pid: int, nice: int) -> None:
    """Let other sessions go first, as `nice` alone does not where Linux shares the processor out among sessions."""
    with suppress(OSError):  # no such kernel, or it was asked ten times within a second
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
