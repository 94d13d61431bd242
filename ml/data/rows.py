"""Columns of a stored dataset, by header. It knows Parquet and nothing of roles."""

from collections.abc import Sequence
from pathlib import Path

from pyarrow import parquet


def read_columns(path: Path, headers: Sequence[str]) -> dict[str, list[str | None]]:
    """Read some columns of a dataset's Parquet file, each as a list of N cells."""
    table = parquet.read_table(path, columns=list(dict.fromkeys(headers)))
    return {header: table[header].to_pylist() for header in table.column_names}
