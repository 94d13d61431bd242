"""Whatever bytes come, each parser makes a dataset of them or says why not, soon. `make fuzz` tries many more."""

import gzip
import io
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ml.data.ingest import ingest
from ml.data.report import IngestOptions
from ml.specs.errors import SpecError

Edits = list[tuple[float, int, bytes]]
SECONDS = 20  # ample on a busy machine; what does not end, ends never


def _parquet() -> bytes:
    table = pa.table({"text": ["a", "b", None] * 20, "label": ["x", "y", "x"] * 20, "n": list(range(60))})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


WHOLE = {
    "data.csv": b'text,label\n"where is, my ""parcel""?",delivery\nthanks,other\n',
    "data.tsv": b"text\tlabel\twhere\nis my\tparcel\tx\n",
    "data.jsonl": b'{"text": "where is my parcel?", "label": ["a", "b"]}\n{"text": null, "n": 1.5e3}\n',
    "data.parquet": _parquet(),
}

few = settings(max_examples=settings.default.max_examples // 4)  # by the profile, so that `make fuzz` takes more
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=6)


def _edited(content: bytes, changes: Edits) -> bytes:
    """At a place (a share of the length) some bytes go and others come."""
    for share, gone, new in changes:
        place = int(share * len(content))
        content = content[:place] + new + content[place + gone :]
    return content


def _read(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, destination = Path(folder) / "source", Path(folder) / "data.parquet"
        source.write_bytes(content)
        options = IngestOptions(filename=name, max_bytes=1 << 20, max_rows=10_000)
        began = time.monotonic()
        try:
            report = ingest(source, destination, options)
        except SpecError as error:
            assert error.problems[0].message
            error.problems[0].message.encode()  # it can be sent
            assert not destination.exists()
        else:
            assert parquet.read_table(destination).num_rows == report.rows > 0
        assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", WHOLE)
class TestAnyBytes:
    @few
    @given(changes=edits)
    def test_of_a_file_that_was_whole(self, name: str, is_packed: bool, changes: Edits) -> None:
        content = _edited(WHOLE[name], changes)
        _read(gzip.compress(content, mtime=0) if is_packed else content, f"{name}.gz" if is_packed else name)

    @few
    @given(noise=st.binary(max_size=400))
    def test_of_no_file_at_all(self, name: str, is_packed: bool, noise: bytes) -> None:
        magic = b"PAR1" if name.endswith("parquet") else b""
        content = magic + noise + magic
        _read(gzip.compress(content, mtime=0) if is_packed else content, f"{name}.gz" if is_packed else name)


@few
@given(changes=edits)
@pytest.mark.parametrize("name", WHOLE)
def test_of_a_damaged_gzip(name: str, changes: Edits) -> None:
    _read(_edited(gzip.compress(WHOLE[name], mtime=0), changes), f"{name}.gz")
