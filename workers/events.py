"""Reads a run's events.jsonl by offset. A line is taken once it is whole."""

import itertools
import json
from pathlib import Path
from typing import Any


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
