"""The words of a job's life, shared by rows, replies and workers."""

from typing import Literal

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
ShownStatus = Literal[Status, "cancelling", "pausing"]
Wish = Literal["cancel", "pause"]
SHORT_QUEUE = "short"  # of jobs that must not wait behind a training
LIVE: tuple[Status, ...] = ("queued", "running", "paused")
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")


def shown_status(status: str, wanted: str | None) -> str:
    """What a caller sees: a running job with a wish shows the wish."""
    if status == "running" and wanted is not None:
        return {"cancel": "cancelling", "pause": "pausing"}[wanted]
    return status
