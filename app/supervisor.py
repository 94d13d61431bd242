"""Keeps a few processes running: starts them in order, starts again what dies, stops them in reverse order.

It knows nothing of what they are. Everything happens on the main thread, because the kernel ties a child to the thread
that created it.
"""

import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml.lifeline import tie_to_parent, watch_stdin

PARENT_PID_VARIABLE = "MINIMAND_PARENT_PID"

STOP_TIMEOUT_SECONDS = 10.0
_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 10.0
_HEALTHY_SECONDS = 30.0
# `timeout` and some service managers send one request to a process and again to its group: that is still one request.
_ECHO_SECONDS = 0.5

_log = logging.getLogger(__name__)


class HomeInUseError(RuntimeError):
    """Another supervisor runs on this home."""


@dataclass(frozen=True)
class ChildSpec:
    """One process to keep running. `environment` is added to the supervisor's own."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Runs its children until it is told to stop by SIGINT, SIGTERM or SIGHUP."""

    def __init__(self, children: Sequence[ChildSpec], *, stop_timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        self._children = [_Child(spec) for spec in children]
        self._stop_timeout_seconds = stop_timeout_seconds

    def run(self) -> int:
        """Supervise until asked to stop. Returns 0, or 1 when a second request cut the stop short."""
        with _listen() as signals:
            try:
                while not signals.stop_requested:
                    now = time.monotonic()
                    for child in self._children:
                        child.keep_running(now)
                    signals.wait(min(child.restart_at for child in self._children))
                _log.info("Stopping. Asking again (Ctrl-C) kills at once.")
                for child in reversed(self._children):
                    self._stop(child, signals)
            finally:
                for child in self._children:
                    child.kill()
            return 1 if signals.kill_requested else 0

    def _stop(self, child: "_Child", signals: "_Signals") -> None:
        child.terminate()
        give_up_at = time.monotonic() + self._stop_timeout_seconds
        while child.is_running and not signals.kill_requested:
            if time.monotonic() >= give_up_at:
                _log.warning("%s did not stop within %g s and is killed", child.spec.name, self._stop_timeout_seconds)
                break
            signals.wait(give_up_at)
        child.kill()


def tie_to_supervisor(signal_number: int) -> None:
    """Die with the supervisor that started this process; without one, do nothing. Call it first in a child."""
    # Taken out of the environment, as it isn't true for the children of this process.
    parent = os.environ.pop(PARENT_PID_VARIABLE, None)
    if parent is None:
        return
    tie_to_parent(int(parent), signal_number=signal_number)
    if sys.platform != "linux":
        watch_stdin(lambda: os.kill(os.getpid(), signal_number))


@contextlib.contextmanager
def hold_home(home: Path) -> Iterator[None]:
    """Hold a home as its only supervisor; the kernel lets go of it when this process dies, however it dies."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise HomeInUseError(
                f"The home {home.resolve()} is in use by another `minimand up` (process {file.read().strip()}). "
                "Stop that one first, or choose another home with --home."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class _Child:
    """A spec, the process that runs it now, and when to start the next one."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.restart_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._delay_seconds = _FIRST_DELAY_SECONDS

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def keep_running(self, now: float) -> None:
        """Start the process if it is due; if it just ended, say so and make it due after a pause."""
        if self.is_running:
            return
        if self._process is not None:
            self._bury(self._process, now)
        if now >= self.restart_at:
            self._start(now)

    def terminate(self) -> None:
        if self._process is not None and self.is_running:
            self._process.terminate()

    def kill(self) -> None:
        """Kill what is left of the process and its group."""
        if self._process is None:
            return
        # Whatever the child started in its own group ends with it. The group's number is the child's; the system
        # does not give it away while any member lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _start(self, now: float) -> None:
        environment = {**os.environ, **self.spec.environment, PARENT_PID_VARIABLE: str(os.getpid())}
        self._process = subprocess.Popen(
            list(self.spec.argv),
            env=environment,
            # Nothing is ever written: its end tells a child that we are gone where the kernel has no signal for it.
            stdin=subprocess.PIPE,
            # The terminal's Ctrl-C is for us alone; we pass it on in order.
            start_new_session=True,
        )
        self._started_at = now
        self.restart_at = float("inf")
        _log.debug("%s started as process %d", self.spec.name, self._process.pid)

    def _bury(self, process: subprocess.Popen[bytes], now: float) -> None:
        if now - self._started_at >= _HEALTHY_SECONDS:
            self._delay_seconds = _FIRST_DELAY_SECONDS
        _log.error(
            "%s ended by itself with %s; it is started again in %g s",
            self.spec.name,
            _describe_status(process.returncode),
            self._delay_seconds,
        )
        self.kill()
        self.restart_at = now + self._delay_seconds
        self._delay_seconds = min(self._delay_seconds * 2, _LONGEST_DELAY_SECONDS)


class _Signals:
    """What was asked so far, and a sleep that any signal (a child's end included) cuts short."""

    def __init__(self, wakeups: int) -> None:
        self._wakeups = wakeups
        self._first_request_at: float | None = None
        self.kill_requested = False

    @property
    def stop_requested(self) -> bool:
        return self._first_request_at is not None

    def take(self, _number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._first_request_at is None:
            self._first_request_at = now
        elif now - self._first_request_at > _ECHO_SECONDS:
            self.kill_requested = True

    def wait(self, until: float) -> None:
        timeout = None if until == float("inf") else max(0.0, until - time.monotonic())
        select.select([self._wakeups], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeups, 4096)


@contextlib.contextmanager
def _listen() -> Iterator[_Signals]:
    """Take over the signals. Each one also writes a byte to a pipe, so none is lost just before a sleep."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signals = _Signals(readable)
    # A process started by nohup stays deaf to its terminal's end.
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, signals.take) for number in wanted}
    # SIGCHLD needs a handler to be delivered to Python at all; the byte in the pipe is its whole effect.
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    earlier_wakeups = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(earlier_wakeups)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
