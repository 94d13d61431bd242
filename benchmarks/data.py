"""The real datasets the benchmarks read: they lie outside the repository, in the folder MINIMAND_TEST_DATA."""

import csv
import gzip
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("MINIMAND_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")

Row = dict[str, Any]


def read_rows(dataset: str, part: str) -> list[Row]:
    """The rows of one file, e.g. ("trec", "train"), whatever its format; ends the program where it is not there."""
    for path in sorted((FOLDER / dataset).glob(f"{part}.*")):
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            if ".jsonl" in path.name:
                return [json.loads(line) for line in file]
            return list(csv.DictReader(file))
    sys.exit(f"there is no {dataset}/{part}.* in {FOLDER}: name the folder of the datasets with MINIMAND_TEST_DATA")


def write_parts(path: Path, parts: dict[str, Iterable[tuple[str, Any]]]) -> None:
    """Write text and label of each part as one CSV file with a split column. A label that is a list becomes JSON."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for part, rows in parts.items():
            writer.writerows(
                [text, json.dumps(label) if isinstance(label, list) else label, part] for text, label in rows
            )
