"""What a run tells: reads its events.jsonl by offset, and sorts it into what the database holds.

It knows lines and columns, and writes nothing.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Double, func, literal

from app.db.tables import JobRow
from app.jobs.repository import Event


class EventTail:
    """The unread end of an events file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.offset = 0  # bytes handed over so far

    def read(self) -> list[tuple[dict[str, Any], int]]:
        """The whole lines after the offset, each with the offset behind it. The caller moves it once they are kept."""
        try:
            with self._file.open("rb") as file:
                file.seek(self.offset)
                lines = file.readlines()
        except FileNotFoundError:
            return []
        ends = itertools.accumulate(map(len, lines), initial=self.offset)
        next(ends)
        return [(json.loads(line), end) for line, end in zip(lines, ends, strict=True) if line.endswith(b"\n")]


class Told:
    """Lines of events.jsonl, sorted into what the database holds: events, metrics, and columns of the job."""

    def __init__(self, checkpoint_ids: Mapping[str, str]) -> None:
        """checkpoint_ids: of the stored checkpoints, by folder name."""
        self._checkpoint_ids = checkpoint_ids
        self.events: list[Event] = []
        self.metrics: list[dict[str, Any]] = []
        self.columns: dict[str, Any] = {}
        self.offset: int | None = None  # behind the newest line

    @property
    def is_last_step(self) -> bool:
        """Whether no step is left to make."""
        progress = self.columns.get("progress", {})
        return "steps" in progress and progress["step"] >= progress["steps"]

    def take(self, line: dict[str, Any], offset: int) -> None:
        """Sort in one line, but for a checkpoint's; offset: behind it."""
        self.offset = offset
        data = dict(line["data"])
        if line["type"] == "progress":
            self.columns["progress"] = data
            return  # twice a second: too many for a story, and the row holds the newest
        if line["type"] == "metrics":
            for name, value in data["values"].items():
                row = {"name": name, "step": data["step"], "value": value, "created_at": line["created_at"]}
                self.metrics.append(row)
            if data["step"] >= 1:
                self.columns.setdefault(
                    "first_step_at", func.coalesce(JobRow.first_step_at, literal(line["created_at"], Double))
                )
        if (name := data.pop("checkpoint", None)) is not None:
            data["checkpoint_id"] = self._checkpoint_ids.get(name)
        self.events.append(Event(line["type"], line["message"], data, line["level"], line["created_at"]))
