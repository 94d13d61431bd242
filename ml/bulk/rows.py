"""Rows in, lines out: which rows of a dataset can be answered, and the two files that tell of each.

It knows no model. Rows count from 1, as everywhere.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import to_json

from ml.artifact.manifest import publish_folder, read_manifest
from ml.artifact.tokenizer import Text
from ml.bulk.report import ERRORS, OUTPUT, FileReport, RequestCounts
from ml.data.rows import read_texts
from ml.specs.facts import Columns


@dataclass(frozen=True)
class RowError:
    """Why a row is not answered."""

    code: str
    message: str


def read_rows(path: Path, columns: Columns) -> Iterator[tuple[Text, RowError | None]]:
    """The text of each row, or pair of texts, and what is wrong with it, if anything is."""
    headers = (columns.text, columns.text_pair)
    for texts in read_texts(path, columns):
        for text in texts:
            parts = (text,) if isinstance(text, str) else text
            empty = next((header for header, part in zip(headers, parts, strict=False) if not part.strip()), None)
            error = empty and RowError("empty_text", f"column '{empty}' is empty; there is nothing to classify.")
            yield text, error or None


class LineFiles:
    """output.jsonl and errors.jsonl, being written."""

    def __init__(self, output: BinaryIO, errors: BinaryIO) -> None:
        self._output, self._errors = output, errors
        self.completed = self.failed = 0

    def answer(self, row: int, result: Mapping[str, Any]) -> None:
        """A row's line. JSON has no NaN: such a score becomes null, as in a prediction's reply."""
        self._output.write(to_json({"row": row, **result}, inf_nan_mode="null") + b"\n")
        self.completed += 1

    def refuse(self, row: int, error: RowError) -> None:
        """The line of a row that is not answered."""
        self._errors.write(to_json({"row": row, "code": error.code, "message": error.message}) + b"\n")
        self.failed += 1

    @property
    def counts(self) -> RequestCounts:
        """Of the lines so far."""
        return RequestCounts(total=self.completed + self.failed, completed=self.completed, failed=self.failed)


@contextmanager
def write_files(folder: Path) -> Iterator[LineFiles]:
    """Both files, whole or not there. Raises DiskFullError."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run in the same directory
    with (
        publish_folder(folder, "output", {}) as new,
        (new / OUTPUT).open("wb") as output,
        (new / ERRORS).open("wb") as errors,
    ):
        yield LineFiles(output, errors)


def describe_files(folder: Path) -> dict[str, FileReport]:
    """What was written."""
    return {name: FileReport(**file) for name, file in read_manifest(folder)["files"].items()}
