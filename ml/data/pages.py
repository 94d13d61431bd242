"""A few consecutive rows of a stored dataset. It knows Parquet and nothing of roles or requests."""

from pathlib import Path

from pyarrow import parquet

# Of the row groups a page touches, this many rows are decoded at a time.
DECODE_ROWS = 1 << 12


def read_page(path: Path, start: int, count: int) -> list[dict[str, str | None]]:
    """Read rows `start` to `start + count` (from 0), each as {header: cell}; fewer where the file ends."""
    rows: list[dict[str, str | None]] = []
    with parquet.ParquetFile(path) as file:
        groups, first = _row_groups(file, start, count)
        for batch in file.iter_batches(batch_size=DECODE_ROWS, row_groups=groups, use_threads=False):
            begin = max(0, start - first)
            rows += batch.slice(begin, count - len(rows)).to_pylist() if begin < batch.num_rows else []
            first += batch.num_rows
            if len(rows) == count:
                break
    return rows


def _row_groups(file: parquet.ParquetFile, start: int, count: int) -> tuple[list[int], int]:
    """The groups that hold these rows, and the number of the first one's first row."""
    groups: list[int] = []
    first = position = 0
    for group in range(file.metadata.num_row_groups):
        end = position + file.metadata.row_group(group).num_rows
        if position < start + count and end > start:
            first = first if groups else position
            groups.append(group)
        position = end
    return groups, first
