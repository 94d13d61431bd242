"""Named places where a fault test may have a process die, as a kernel or a power cut would have it: at once.

`MINIMAND_CRASH_FILE` names a file that holds the name of one point. The first process to come by that point removes the
file and kills itself, so a point is passed by in peace ever after. Without the variable this costs a comparison; the
service's settings refuse it in production. What has happened when a point is reached is said by its name: after_rename
is between the rename and whatever comes next.
"""

import os
import signal
from pathlib import Path

_FOLDERS = ("cache", "checkpoint", "encoder", "artifact")
_STEPS = ("after_files", "after_manifest", "after_rename")

# By the program that comes by them.
POINTS = {
    "api": (  # an upload, and a submission
        *("store.before_rename", "dataset.after_store", "dataset.after_commit"),
        *("job.before_commit", "job.after_commit", "job.after_wake"),
    ),
    "worker": (  # from a claim to a trainer, a checkpoint's copy and row, the end
        *("run.after_claim", "run.after_prepare", "run.after_start", "run.after_release"),
        *("checkpoint.before_store", "store.before_manifest", "checkpoint.after_store"),
        *("checkpoint.after_commit", "checkpoint.after_forget"),
        *("model.before_store", "model.after_base", "model.after_store", "model.after_commit"),
    ),
    "batch worker": (
        "checkpoint.after_commit",
        "output.before_store",
        "output.after_store",
    ),  # amid a batch, at its end
    "trainer": tuple(f"{folder}.{step}" for folder in _FOLDERS for step in _STEPS),
}

_FILE = os.environ.get("MINIMAND_CRASH_FILE")


def crash_point(name: str) -> None:
    """Die here if this point is armed."""
    if _FILE is None:
        return
    armed = Path(_FILE)
    try:
        if armed.read_text() != name:
            return
        armed.unlink()
    except FileNotFoundError:  # nothing is armed, or another process was first
        return
    os.kill(os.getpid(), signal.SIGKILL)
