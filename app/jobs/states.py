"""The words of a job's life, shared by rows, replies and workers."""

from typing import Literal, get_args

from ml.specs.job import JobKind

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
ShownStatus = Literal[Status, "cancelling", "pausing"]
Wish = Literal["cancel", "pause"]
Cause = Literal[  # why a job left a worker's hands, or was ended or paused on request
    "requested",
    "worker_stopped",
    "lease_expired",
    "trainer_died",
    "disk_full",
    "no_progress",
    "runner_failed",
    "artifact_damaged",
    "result_unreadable",
    "restored",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
SHORT_QUEUE = "short"  # of jobs that must not wait behind a training
SHORT_KINDS: tuple[JobKind, ...] = ("dry_run", "publish")  # which they are
BULK_QUEUE = "bulk"  # of jobs that put a model to a whole dataset: long ones, which need no GPU
BULK_KINDS: tuple[JobKind, ...] = ("prediction_batch", "evaluation")
LIVE: tuple[Status, ...] = ("queued", "running", "paused")
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")


def shown_status(status: str, wanted: str | None) -> str:
    """What a caller sees: a running job with a wish shows the wish."""
    if status == "running" and wanted is not None:
        return {"cancel": "cancelling", "pause": "pausing"}[wanted]
    return status
