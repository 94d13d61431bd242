"""Columns of a stored dataset, by header, and its texts. It knows Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import parquet

from ml.artifact.tokenizer import Text
from ml.specs.facts import Columns

# So many texts are in memory at a time.
TEXTS_AT_ONCE = 10_000


def read_columns(path: Path, headers: Sequence[str]) -> dict[str, list[str | None]]:
    """Read some columns of a dataset's Parquet file, each as a list of N cells."""
    table = parquet.read_table(path, columns=list(dict.fromkeys(headers)))
    return {header: table[header].to_pylist() for header in table.column_names}


def read_texts(path: Path, columns: Columns) -> Iterator[list[Text]]:
    """Read the texts of every row in order, some thousands at a time; pairs as pairs."""
    headers = [columns.text] + ([columns.text_pair] if columns.text_pair else [])
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(TEXTS_AT_ONCE, columns=headers, use_threads=False):
            texts, *pairs = ([cell or "" for cell in batch[header].to_pylist()] for header in headers)
            yield list(zip(texts, *pairs, strict=True)) if pairs else list(texts)
