"""Reads a run's events.jsonl by offset. A line is taken once it is whole."""

import json
from pathlib import Path
from typing import Any


class EventTail:
    """The unread end of an events file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.offset = 0  # bytes handed over so far

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines after the offset, and the offset behind them. The caller moves it once they are stored."""
        try:
            with self._file.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return [], self.offset
        end = data.rfind(b"\n") + 1
        return [json.loads(line) for line in data[:end].splitlines()], self.offset + end
