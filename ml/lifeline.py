"""Ties a process to the one that started it, so that nothing is left running when a parent is killed.

Two nets: Linux's parent-death signal, and the end of standard input, which works everywhere. It knows nothing of what
the process does.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent_pid: int | None = None, *, signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send `signal_number` to this process when its parent dies. Call it first, from the main thread.

    `parent_pid` is the parent that is expected; a process whose parent is another one already ends here. Choose
    SIGKILL where a graceful end could take longer than the parent's death allows. Elsewhere than on Linux only the
    check is done: `watch_stdin` is the net there.
    """
    expected = os.getppid() if parent_pid is None else parent_pid
    if sys.platform == "linux":
        # The kernel sends this when the THREAD that created us dies, not the process: a parent starts its children
        # from a thread that lives as long as itself. The wish belongs to the thread that calls here, survives exec
        # (except of a setuid program) and is not inherited by our own children.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(int(signal_number)), 0, 0, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    # The parent may have died before the wish was registered, and then no signal ever comes.
    if os.getppid() != expected:
        sys.exit(f"The parent process {expected} is gone.")


def watch_stdin(on_end: Callable[[], None], on_data: Callable[[bytes], None] | None = None) -> threading.Thread:
    """Call `on_end` from a daemon thread once standard input ends: the parent that held its other end is gone.

    What the parent writes goes to `on_data`; a short line comes in one piece.
    """

    def wait() -> None:
        # The descriptor itself, since a blocked read of sys.stdin would hold its lock while the interpreter ends.
        while data := os.read(0, 4096):
            if on_data is not None:
                on_data(data)
        on_end()

    thread = threading.Thread(target=wait, name="lifeline", daemon=True)
    thread.start()
    return thread
