"""Parquet of any types as headers and batches of text cells. It knows no roles and no limit on rows."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ml.data.readers import TextTable, cell_text, check_headers, text_schema
from ml.data.report import IngestOptions
from ml.data.sources import PARQUET_MAGIC, Source
from ml.specs.errors import SpecError, refuse

BATCH_ROWS = 1 << 10


def read_parquet(source: Source, options: IngestOptions, scratch: Path) -> TextTable:
    """Parquet, decompressed into `scratch` first when it came as gzip: its index stands at the end."""
    path = source.path
    if source.is_gzip:
        path = scratch
        with source.open() as packed, path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    with path.open("rb") as raw:
        raw.seek(-len(PARQUET_MAGIC), 2)
        if raw.read() != PARQUET_MAGIC:
            raise refuse(
                "/file", "the Parquet file does not end as one does: it was cut off. Upload it again.", "truncated_file"
            )
    file = _explained(lambda: parquet.ParquetFile(path, memory_map=False, buffer_size=1 << 20))
    headers = list(file.schema_arrow.names)
    check_headers(headers, options)
    return TextTable(headers, _parquet_batches(file, headers, source))


def _parquet_batches(file: Any, headers: list[str], source: Source) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
    schema = text_schema(headers)
    total = 0
    while (batch := _explained(lambda: next(batches, None))) is not None:
        columns = [_text_array(column, name) for name, column in zip(headers, batch.columns, strict=True)]
        texts = pa.RecordBatch.from_arrays(columns, schema=schema)
        total += texts.nbytes
        source.check_size(total, " once decoded")
        yield texts


def _explained(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise refuse(
            "/file", f"the Parquet file cannot be read: {reason}. Write it again.", "invalid_parquet"
        ) from None


def _text_array(array: pa.Array, name: str) -> pa.Array:
    """One Parquet column as text: numbers, booleans and nested values as their JSON, dates in ISO order."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _text_array(_explained(array.dictionary_decode), name)
    try:
        if pa.types.is_nested(kind):
            return pa.array([cell_text(value) for value in array.to_pylist()], pa.string())
        if pa.types.is_floating(kind):
            if pc.any(pc.is_inf(array)).as_py():
                raise refuse("/file", f"column '{name}' holds an infinite number. Write null instead.", "invalid_value")
            array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)  # dataframes say "missing" as NaN
        texts = array.cast(pa.string())
        texts.validate(full=True)  # Parquet promises UTF-8 and does not check it
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, SpecError | MemoryError):
            raise
        raise refuse(
            "/file", f"column '{name}' ({kind}) cannot be read as text. Drop or convert it.", "invalid_value"
        ) from None
    return texts
