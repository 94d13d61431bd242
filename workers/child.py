"""One training process: started in its own group, tied to this worker's life, asked to stop, killed.

It knows processes, not jobs.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

# The kernel's parent-death signal fires when the thread that made a child ends. This one lives as long as the worker.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="spawner")


class TrainerProcess:
    """`python -m ml.training RUN_DIR`, running."""

    def __init__(self, run_directory: Path, environment: Mapping[str, str]) -> None:
        self._log = (run_directory / "log.txt").open("ab")
        self._process = _SPAWNER.submit(self._spawn, run_directory, environment).result()

    def _spawn(self, run_directory: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            # -P: a folder named `ml` where the operator happens to stand must not be taken for ours.
            [sys.executable, "-P", "-m", "ml.training", str(run_directory)],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

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
        self._log.close()
        if self._process.stdin:
            self._process.stdin.close()
        return status
