"""What a trainer's log tells of its crash: where it was, and of what kind. Not the exception's message, which may quote
a user's text. It knows files, and no jobs.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_BEGINS = "Traceback (most recent call last):"
_FRAME = re.compile(r'  File "(.+)", line (\d+), in (.+)')
_KIND = re.compile(r"([A-Za-z_][\w.]*)(:|$)")
_READ_BYTES = 100_000


@dataclass(frozen=True)
class Crash:
    """An exception that nobody caught."""

    kind: str
    frames: tuple[str, ...]  # the innermost last

    def __str__(self) -> str:
        return f"{self.kind} at {self.frames[-1]}"


def read_crash(log: Path) -> Crash | None:
    """The last traceback in a log; None where it ends without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _READ_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    _, begins, traceback = text.rpartition(_BEGINS)
    frames: list[str] = []
    for line in traceback.splitlines()[1:] if begins else []:
        if frame := _FRAME.fullmatch(line):
            file_name, number, function = frame.groups()
            frames.append(f"{'/'.join(Path(file_name).parts[-3:])}:{number} ({function})")
        elif frames and (kind := _KIND.match(line)):
            return Crash(kind[1], tuple(frames))
    return None
