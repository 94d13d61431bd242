"""Turns an uploaded file into one Parquet file of text cells, and says what is in it. Memory stays flat.

As a program it limits itself and reads what it cannot trust: python -m ml.data.ingest SOURCE DESTINATION [OPTIONS].
It knows no request and no store.
"""

import gc
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ml.artifact.manifest import file_sha256
from ml.data.parquet_reader import read_parquet
from ml.data.readers import TextTable, no_rows, read_csv, read_jsonl, text_schema
from ml.data.report import IngestOptions, IngestReport
from ml.data.sources import Source, open_source
from ml.data.tally import Tally
from ml.process_limits import limit_process
from ml.specs.errors import Problem, SpecError, refuse
from ml.specs.facts import Columns, recognise_columns

ROW_GROUP_ROWS = 1 << 16
ROW_GROUP_BYTES = 1 << 24  # long texts make smaller groups, so that a group always fits in memory
NICENESS = 10

__all__ = ["IngestOptions", "IngestReport", "ingest"]


def ingest(source: Path, destination: Path, options: IngestOptions) -> IngestReport:
    """Read `source` whatever its format, write `destination`, and report; SpecError when it cannot be done."""
    scratch = destination.with_name(f"{destination.name}.unpacked")
    try:
        opened = open_source(source, options)
        table = _read(opened, options, scratch)
        columns, recognised = recognise_columns(table.headers, options.columns)
        tally = Tally(table.headers, columns, recognised)
        _write(_accepted(table, tally, options), destination, table.headers, columns)
        if tally.rows == 0:
            raise no_rows()
    except BaseException:
        destination.unlink(missing_ok=True)
        raise
    finally:
        scratch.unlink(missing_ok=True)
    return IngestReport(
        facts=tally.facts(),
        rows=tally.rows,
        bytes=destination.stat().st_size,
        sha256=file_sha256(destination),
        source_bytes=source.stat().st_size,
        source_sha256=file_sha256(source),
        format=opened.format,
    )


def _read(source: Source, options: IngestOptions, scratch: Path) -> TextTable:
    if source.kind == "parquet":
        return read_parquet(source, options, scratch)
    if source.kind == "jsonl":
        return read_jsonl(source, options)
    return read_csv(source, options)


def _accepted(table: TextTable, tally: Tally, options: IngestOptions) -> Iterator[pa.RecordBatch]:
    """Pass on each batch that keeps the limits, counted."""
    for batch in table.batches:
        if options.max_rows is not None and tally.rows + batch.num_rows > options.max_rows:
            raise refuse(
                "/file",
                f"the file has more than {options.max_rows:,} rows, the most a dataset may have. Split it.",
                "too_many_rows",
            )
        for header, cells in zip(table.headers, batch.columns, strict=True):
            _check_cells(header, cells, tally.rows + 1, options.max_cell_bytes)
        yield tally.add(batch)


def _check_cells(header: str, cells: pa.Array, first_row: int, max_cell_bytes: int) -> None:
    sizes = pc.binary_length(cells)
    if (pc.max(sizes).as_py() or 0) > max_cell_bytes:
        at = pc.index(pc.greater(sizes, max_cell_bytes), True).as_py()
        raise refuse(
            "/file",
            f"row {first_row + at:,}, column '{header}': the cell has {sizes[at].as_py():,} bytes, and may have "
            f"{max_cell_bytes:,}. Shorten it.",
            "cell_too_large",
        )
    # Looking through the bytes of all cells at once is far quicker than through each cell.
    data = cells.buffers()[2]
    if data is not None and b"\0" in data.to_pybytes() and pc.any(with_nul := pc.match_substring(cells, "\0")).as_py():
        raise refuse(
            "/file",
            f"row {first_row + pc.index(with_nul, True).as_py():,}, column '{header}': the cell holds a NUL character, "
            "which is no text. Remove it, or pass the file's encoding, e.g. encoding=utf-16.",
            "invalid_character",
        )


def _write(batches: Iterator[pa.RecordBatch], destination: Path, headers: list[str], columns: Columns) -> None:
    texts = {columns.text, columns.text_pair}
    with parquet.ParquetWriter(
        destination,
        text_schema(headers),
        compression="zstd",
        # Texts hardly repeat; labels, splits and groups do.
        use_dictionary=[header for header in headers if header not in texts],
        write_statistics=False,
    ) as writer:
        for group in _row_groups(batches):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if waiting and rows + batch.num_rows > ROW_GROUP_ROWS:
            head = batch.slice(0, ROW_GROUP_ROWS - rows)
            batch = batch.slice(ROW_GROUP_ROWS - rows)
            yield pa.Table.from_batches([*waiting, head])
            waiting, rows, size = [], 0, 0
        waiting.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows == ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def main(arguments: list[str]) -> int:
    """Ingest one file within limits and print one JSON object: a report, or problems."""
    source, destination, *rest = arguments
    options = IngestOptions.model_validate_json(rest[0] if rest else "{}")
    _limit_process(options)
    problems: tuple[Problem, ...] = ()
    try:
        report = ingest(Path(source), Path(destination), options)
    except SpecError as error:
        problems = error.problems
    except MemoryError:
        limit = f" of {options.memory_bytes:,} bytes" if options.memory_bytes else ""
        message = f"reading the file took more memory than the limit{limit}. Shorten its cells, or split it."
        problems = (Problem("/file", message, "parser_out_of_memory"),)
    if problems:
        answer = json.dumps({"problems": [vars(problem) for problem in problems]})
    else:
        answer = f'{{"report": {report.model_dump_json()}}}'
    sys.stdout.write(answer + "\n")
    return 1 if problems else 0


def _limit_process(options: IngestOptions) -> None:
    """Bound memory and processor time, and step back behind the service that started this."""
    if options.memory_bytes is not None:
        limit_process(resource.RLIMIT_AS, options.memory_bytes)
    if options.cpu_seconds is not None:
        limit_process(resource.RLIMIT_CPU, options.cpu_seconds)
    os.nice(NICENESS)
    gc.disable()  # rows make no cycles, and looking for some takes as long as parsing
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
