"""CSV and JSON lines as one thing: headers, and batches of text cells.

It knows no roles and no limit on rows.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ml.data.report import IngestOptions
from ml.data.sources import Source
from ml.specs.errors import SpecError, refuse, show

# A batch is what Python holds at a time; both bounds keep it small, whatever the shape of the file.
BATCH_CELLS = 1 << 13
BATCH_BYTES = 1 << 21
MAX_HEADER_CHARACTERS = 1_000

Cells = Sequence[str | None]


@dataclass(frozen=True)
class TextTable:
    """A table whose every cell is text or missing."""

    headers: list[str]
    batches: Iterator[pa.RecordBatch]


def read_csv(source: Source, options: IngestOptions) -> TextTable:
    """CSV or TSV. A cell is what stands between the delimiters; an empty one is an empty text."""
    csv.field_size_limit(options.max_cell_bytes)
    reader = csv.reader(source.lines(), delimiter=source.delimiter, strict=True)
    try:
        headers = next((row for row in reader if not _is_blank(row)), [])
    except csv.Error as error:
        raise _broken_csv(error, 1, options) from None
    check_headers(headers, options)
    return TextTable(headers, _to_batches(headers, _csv_columns(reader, source, len(headers), options)))


def _csv_columns(reader: Any, source: Source, width: int, options: IngestOptions) -> Iterator[list[Cells]]:
    batch_rows = max(1, BATCH_CELLS // width)
    rows: list[list[str]] = []
    first_byte, line = source.bytes_read, reader.line_num
    try:
        for row in reader:
            if len(row) != width:
                if _is_blank(row):
                    continue
                raise _wrong_width(row, width, reader)
            line = reader.line_num
            rows.append(row)
            if len(rows) == batch_rows or source.bytes_read - first_byte > BATCH_BYTES:
                yield list(zip(*rows, strict=True))
                rows, first_byte = [], source.bytes_read
    except csv.Error as error:
        raise _broken_csv(error, line + 1, options) from None
    if rows:
        yield list(zip(*rows, strict=True))


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def _wrong_width(row: list[str], width: int, reader: Any) -> SpecError:
    line = reader.line_num
    came = f"line {line:,} has {_count(len(row), 'cell')}, and the header {width}."
    try:
        is_last = next((later for later in reader if later), None) is None
    except csv.Error:
        is_last = False
    if is_last and len(row) < width:
        return refuse("/file", f"{came} It is the last line: the file was cut off. Upload it again.", "truncated_file")
    fix = "Quote cells that hold the delimiter, or pass the right delimiter=."
    return refuse("/file", f"{came} {fix}", "wrong_cell_count")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _broken_csv(error: csv.Error, line: int, options: IngestOptions) -> SpecError:
    message = str(error)
    if message == "unexpected end of data":
        return refuse(
            "/file",
            f"the file ends inside a quoted cell of the row that starts on line {line:,}: it was cut off, or a quote "
            'is missing. Write a quote inside a quoted cell twice ("").',
            "truncated_file",
        )
    if message.startswith("field larger"):
        return refuse(
            "/file",
            f"a cell of the row that starts on line {line:,} is over {options.max_cell_bytes:,} bytes, the most a cell "
            "may have. Shorten it, or close its quote.",
            "cell_too_large",
        )
    return refuse(
        "/file",
        f"the row that starts on line {line:,} is no valid CSV: {message}. Write a quote inside a quoted cell twice "
        '("").',
        "invalid_csv",
    )


def read_jsonl(source: Source, options: IngestOptions) -> TextTable:
    """One JSON object a line. The columns are all keys of the file, in order of appearance: it is read twice."""
    headers: dict[str, None] = {}
    record = None
    for record in _records(source):
        if not record.keys() <= headers.keys():
            headers.update(dict.fromkeys(record))
            check_headers(list(headers), options)
    if record is None:
        raise no_rows()
    check_headers(list(headers), options)
    return TextTable(list(headers), _to_batches(list(headers), _json_columns(source, list(headers))))


def _json_columns(source: Source, headers: list[str]) -> Iterator[list[Cells]]:
    batch_rows = max(1, BATCH_CELLS // max(1, len(headers)))
    records: list[dict[str, Any]] = []
    first_byte = 0
    for record in _records(source):
        records.append(record)
        if len(records) == batch_rows or source.bytes_read - first_byte > BATCH_BYTES:
            yield [[cell_text(one.get(header)) for one in records] for header in headers]
            records, first_byte = [], source.bytes_read
    if records:
        yield [[cell_text(one.get(header)) for one in records] for header in headers]


def _records(source: Source) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(source.lines(), 1):
        if line.isspace():
            continue
        try:
            record = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise _broken_json(number, f"{error.msg}, at character {error.pos + 1}", line) from None
        except RecursionError:
            raise _broken_json(number, "it is nested too deep", line) from None
        except NotJsonError as error:
            raise _broken_json(number, str(error), line) from None
        except ValueError:  # Python's bound on the digits of an integer
            raise _broken_json(number, "a number has thousands of digits", line) from None
        if not isinstance(record, dict):
            raise refuse(
                "/file",
                f"line {number:,} is no JSON object. Write one a line, with a value for each column. "
                f"It starts {show(line[:60])}.",
                "not_an_object",
            )
        yield record


def _broken_json(number: int, what: str, line: str) -> SpecError:
    return refuse("/file", f"line {number:,} is no valid JSON: {what}. It starts {show(line[:60])}.", "invalid_json")


class NotJsonError(ValueError):
    """A number that Python reads and JSON does not have."""


def _refuse_number(text: str) -> float:
    raise NotJsonError(f"{text[:40]} is no JSON number; write null")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) != float("inf") else _refuse_number(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse_number, parse_float=_finite)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def cell_text(value: Any) -> str | None:
    """A JSON value as a cell: text as it is, null as missing, all else as compact JSON. Whole numbers have no '.0'."""
    if value is None or isinstance(value, str):
        return value
    try:
        text = _ENCODER.encode(value)
    except RecursionError:
        raise refuse("/file", "a value is nested too deep. Flatten it.", "invalid_value") from None
    return text.removesuffix(".0") if isinstance(value, float) else text


def text_schema(headers: Sequence[str]) -> pa.Schema:
    """The schema of a dataset: each column is nullable text."""
    return pa.schema([(header, pa.string()) for header in headers])


def check_headers(headers: list[str], options: IngestOptions) -> None:
    """Refuse headers that cannot name columns."""
    if not headers:
        raise refuse("/file", "the file has no columns. Start it with a header that names them.", "no_columns")
    if len(headers) > options.max_columns:
        raise refuse(
            "/file",
            f"the file has {len(headers):,} columns, and may have {options.max_columns:,}. Drop those you don't need.",
            "too_many_columns",
        )
    for position, header in enumerate(headers, 1):
        if not header.strip():
            raise refuse("/file", f"column {position} has no name. Name it in the header.", "empty_column_name")
        if len(header) > MAX_HEADER_CHARACTERS:
            raise refuse(
                "/file",
                f"the name of column {position} has {len(header):,} characters, and may have "
                f"{MAX_HEADER_CHARACTERS:,}. Is the first line a header?",
                "column_name_too_long",
            )
        if not _is_storable(header):
            raise refuse(
                "/file", f"the name of column {position} holds a character that is no text.", "invalid_character"
            )
    name, count = Counter(headers).most_common(1)[0]
    if count > 1:
        raise refuse("/file", f"{count} columns are named '{name}'. Give each its own name.", "duplicate_column")


def no_rows() -> SpecError:
    """The refusal of a file without data."""
    return refuse("/file", "the file has no row of data. Upload a header and at least one row.", "no_rows")


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _to_batches(headers: list[str], slices: Iterator[list[Cells]]) -> Iterator[pa.RecordBatch]:
    schema = text_schema(headers)
    first_row = 1
    for columns in slices:
        try:
            arrays = [pa.array(cells, pa.string()) for cells in columns]
        except UnicodeEncodeError:
            raise _lone_surrogate(headers, columns, first_row) from None
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        first_row += len(columns[0])


def _lone_surrogate(headers: list[str], columns: list[Cells], first_row: int) -> SpecError:
    row, header = next(
        (row, header)
        for header, cells in zip(headers, columns, strict=True)
        for row, cell in enumerate(cells, first_row)
        if cell is not None and not _is_storable(cell.replace("\0", ""))
    )
    return refuse(
        "/file",
        f"row {row:,}, column '{header}': half of a surrogate pair (\\ud800 to \\udfff) is no character. "
        "Write the pair whole, or leave it out.",
        "invalid_character",
    )
