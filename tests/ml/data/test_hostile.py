"""Uploads that were made to do harm: each ends as a problem, in a child whose memory stays bounded."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pyarrow import parquet

from ml.data import sources
from ml.data.ingest import IngestOptions, ingest
from ml.specs.errors import SpecError
from tests.ml.data.test_ingest import FORMATS

MEMORY_BYTES = 700_000_000
# The parser, and then its own peak in kB: what the system says of a child that ended counts its parent's as well.
MEASURED = """
import re, sys
from ml.data.ingest import main
status = main(sys.argv[1:])
sys.stderr.write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)
"""


class Child:
    """The parser as the service starts it, and what it took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def refuse(self, content: bytes, filename: str = "data.csv", **options: object) -> str:
        """The code of the refusal; nothing is left, and memory stayed within its bound."""
        source = self.folder / "source"
        source.write_bytes(content)
        given = {"filename": filename, "max_bytes": 8_000_000_000, "memory_bytes": MEMORY_BYTES, **options}
        command = [sys.executable, "-c", MEASURED, str(source), str(self.folder / "out"), json.dumps(given)]
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
        child = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert child.returncode == 1, child.stderr
        assert int(child.stderr) * 1024 < MEMORY_BYTES
        assert [path.name for path in self.folder.iterdir()] == ["source"]
        return str(json.loads(child.stdout)["problems"][0]["code"])


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


def as_parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def gzip_of_repeats(piece: bytes, times: int) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        packed.write(b"text\n")
        for _ in range(times):
            packed.write(piece)
    return file.getvalue()


def test_a_gzip_bomb_is_stopped_by_its_ratio_long_before_the_limit_on_bytes(child: Child) -> None:
    bomb = gzip_of_repeats((b"a" * 9_999 + b"\n") * 100, 60)  # 60 MB
    assert len(bomb) < 60_000_000 / sources.IngestOptions().max_ratio
    assert child.refuse(bomb) == "compression_ratio"


def test_text_that_compresses_well_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RATIO_FROM_BYTES", 1_000_000)
    chance = random.Random(0)
    words = [str(number) * 4 for number in range(30)]
    text = "text\n" + "".join(" ".join(chance.choices(words, k=20)) + "\n" for _ in range(20_000))
    (tmp_path / "source").write_bytes(gzip.compress(text.encode()))
    assert ingest(tmp_path / "source", tmp_path / "out", IngestOptions()).rows == 20_000


def test_a_gzip_bomb_of_gzip_bombs_is_not_unpacked(child: Child) -> None:
    assert child.refuse(gzip.compress(gzip_of_repeats(b"a" * 1_000_000, 5)), "data.csv.gz") == "unknown_format"


def test_a_zip_that_is_called_csv_is_refused(child: Child) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../etc/passwd", "text\na\n")
    assert child.refuse(file.getvalue()) == "unknown_format"


def test_a_cell_of_a_gigabyte_is_refused_before_it_is_held(child: Child) -> None:
    assert child.refuse(gzip_of_repeats(b"a" * 10_000_000, 100)) == "row_too_large"
    quoted = gzip.compress(b'text\n"') + gzip_of_repeats(b"a\n" * 5_000_000, 2)
    assert child.refuse(quoted) == "cell_too_large"


def test_a_cell_of_hundreds_of_megabytes_in_parquet_meets_the_limit_on_memory(child: Child) -> None:
    table = pa.table({"text": ["x" * 300_000_000]})
    cell = as_parquet(table, compression="zstd", use_dictionary=False, write_statistics=False)
    assert len(cell) < 100_000
    assert child.refuse(cell, "data.parquet") in ("parser_out_of_memory", "cell_too_large")


def test_a_dictionary_bomb_is_stopped(child: Child) -> None:
    """A text of 100 kB that stands once in the file and a million times in its rows."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 100_000])
    bomb = as_parquet(pa.table({"text": texts}), store_schema=False)
    assert len(bomb) < 200_000
    assert child.refuse(bomb, "data.parquet") in ("parser_out_of_memory", "compression_ratio")


def test_a_hundred_thousand_columns_are_refused(child: Child) -> None:
    names = [f"c{number}" for number in range(100_000)]
    assert child.refuse(",".join(names).encode() + b"\n1\n") == "too_many_columns"
    assert child.refuse(json.dumps(dict.fromkeys(names, "a")).encode(), "data.jsonl") == "too_many_columns"
    wide = as_parquet(pa.table({name: ["a"] for name in names[:5_000]}))
    assert child.refuse(wide, "data.parquet") == "too_many_columns"


def test_types_nested_without_end_are_refused(child: Child) -> None:
    kind = pa.string()
    for _ in range(200):
        kind = pa.list_(kind)
    nested = as_parquet(pa.table({"text": pa.array([None], kind)}))
    assert child.refuse(nested, "data.parquet") == "invalid_parquet"
    assert child.refuse(b'{"text": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "data.jsonl") == "invalid_json"


def test_a_parquet_file_whose_footer_lies_is_refused_or_read_and_never_crashes(tmp_path: Path) -> None:
    """Sizes, counts and offsets turned around, negative ones too: every byte of the footer in turn."""
    sound = FORMATS["parquet"][1]
    (tmp_path / "sound").write_bytes(sound)
    code = """
import sys
from pathlib import Path
from ml.data.ingest import IngestOptions, ingest
from ml.specs.errors import SpecError
sound, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[1]).parent
length = int.from_bytes(sound[-8:-4], "little")
outcomes = {"read": 0, "refused": 0}
for place in [*range(len(sound) - 8 - length, len(sound) - 8, 5), *range(len(sound) - 8, len(sound) - 4)]:
    for byte in (0x00, 0x01, 0x7f, 0xff):
        (folder / "lies").write_bytes(sound[:place] + bytes([byte]) + sound[place + 1:])
        try:
            ingest(folder / "lies", folder / "out", IngestOptions(filename="x.parquet"))
            outcomes["read"] += 1
        except (SpecError, MemoryError):
            outcomes["refused"] += 1
print(outcomes["refused"])
"""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({2 * MEMORY_BYTES},) * 2)\n"
    child = subprocess.run(
        [sys.executable, "-c", limit + code, str(tmp_path / "sound")], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-2_000:]
    assert int(child.stdout) > 50


@examples(max_examples=100)
@given(
    head=st.sampled_from([b"", b"text\n", b"text,label\n", b'{"text": ', b"PAR1", b"\x1f\x8b\x08\x00", b"\xff\xfe"]),
    body=st.binary(max_size=200),
    name=st.sampled_from(["x.csv", "x.tsv", "x.jsonl", "x.csv.gz", "x"]),
    is_packed=st.booleans(),
)
def test_random_bytes_are_a_dataset_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, body: bytes, name: str, is_packed: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = gzip.compress(head + body) if is_packed else head + body
    (folder / "random").write_bytes(content)
    try:
        assert ingest(folder / "random", folder / "out", IngestOptions(filename=name)).rows > 0
    except SpecError as error:
        assert error.problems[0].message
