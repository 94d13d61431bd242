"""Any file a user may upload becomes one Parquet file of text, or a sentence that says why not."""

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ml.data.ingest import ROW_GROUP_ROWS, IngestOptions, IngestReport, ingest
from ml.data.pages import read_page
from ml.data.rows import read_columns
from ml.specs.errors import Problem, SpecError
from ml.specs.facts import MAX_LABELS

ROWS = [
    {"text": "where is my parcel?", "label": "delivery", "split": "train"},
    {"text": '退款少了20块, "请" 核实\n谢谢', "label": "refund", "split": "dev"},
    {"text": "thanks 🙂", "label": "other", "split": " TEST "},
]
STORED = [{**row, "split": split} for row, split in zip(ROWS, ["train", "validation", "test"], strict=True)]


class Workbench:
    """A folder with an upload and what became of it."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.destination = folder / "data.parquet"

    def ingest(self, content: bytes, filename: str = "data.csv", **options: Any) -> IngestReport:
        self.source.write_bytes(content)
        return ingest(self.source, self.destination, IngestOptions(filename=filename, **options))

    def refuse(self, content: bytes, filename: str = "data.csv", **options: Any) -> Problem:
        with pytest.raises(SpecError) as caught:
            self.ingest(content, filename, **options)
        assert not self.destination.exists()
        return caught.value.problems[0]

    @property
    def rows(self) -> list[dict[str, str | None]]:
        rows: list[dict[str, str | None]] = parquet.read_table(self.destination).to_pylist()
        return rows


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def as_csv(rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(encoding)


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


FORMATS = {
    "csv": ("data.csv", as_csv(ROWS)),
    "tsv": ("data.tsv", as_csv(ROWS, "\t")),
    "jsonl": ("data.jsonl", as_jsonl(ROWS)),
    "parquet": ("data.parquet", as_parquet({name: [row[name] for row in ROWS] for name in ROWS[0]})),
}


class TestFormats:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_each_format_gives_the_same_cells(self, bench: Workbench, kind: str) -> None:
        filename, content = FORMATS[kind]
        report = bench.ingest(content, filename)
        assert report.format == kind
        assert bench.rows == STORED

    @pytest.mark.parametrize("kind", FORMATS)
    def test_each_format_is_read_from_gzip(self, bench: Workbench, kind: str) -> None:
        filename, content = FORMATS[kind]
        report = bench.ingest(gzip.compress(content), f"{filename}.gz")
        assert report.format == f"{kind}.gz"
        assert bench.rows == STORED
        assert [path.name for path in bench.source.parent.iterdir() if path.suffix == ".unpacked"] == []

    @pytest.mark.parametrize("kind", FORMATS)
    def test_content_decides_where_the_name_says_nothing(self, bench: Workbench, kind: str) -> None:
        assert bench.ingest(FORMATS[kind][1], "upload").format == kind

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_magic_bytes_come_before_the_name(self, bench: Workbench, kind: str) -> None:
        assert bench.ingest(gzip.compress(FORMATS["parquet"][1]), f"data.{kind}").format == "parquet.gz"

    def test_a_semicolon_is_found_in_a_header_without_commas(self, bench: Workbench) -> None:
        bench.ingest(b"text;label\na, b;x\n")
        assert bench.rows == [{"text": "a, b", "label": "x"}]

    def test_a_comma_in_the_header_settles_the_delimiter(self, bench: Workbench) -> None:
        bench.ingest(b"text,a;b\none,two\n")
        assert bench.rows == [{"text": "one", "a;b": "two"}]

    def test_a_given_delimiter_is_used(self, bench: Workbench) -> None:
        bench.ingest(b"text|label\na,b|x\n", delimiter="|")
        assert bench.rows == [{"text": "a,b", "label": "x"}]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_utf8_needs_no_encoding_with_or_without_a_mark(self, bench: Workbench, encoding: str) -> None:
        bench.ingest("text\nnaïve\n".encode(encoding))
        assert bench.rows == [{"text": "naïve"}]

    @pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "UTF_16_LE", "shift_jis"])
    def test_a_given_encoding_is_used(self, bench: Workbench, encoding: str) -> None:
        bench.ingest("text,label\n漢字,はい\n".encode(encoding), encoding=encoding)
        assert bench.rows == [{"text": "漢字", "label": "はい"}]

    @pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
    def test_any_line_break_ends_a_row_and_blank_lines_are_skipped(self, bench: Workbench, line_break: str) -> None:
        bench.ingest(line_break.join(["", "text,label", "", "a,b", "  ", "c,d", ""]).encode())
        assert bench.rows == [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]


class TestCells:
    def test_csv_cells_are_stored_as_they_came(self, bench: Workbench) -> None:
        bench.ingest(b'text,label,note\n  spaced  , 01 ,""\n"a\r\nb",1.0,\n')
        assert bench.rows == [
            {"text": "  spaced  ", "label": " 01 ", "note": ""},
            {"text": "a\r\nb", "label": "1.0", "note": ""},
        ]

    def test_json_values_are_stored_as_compact_json(self, bench: Workbench) -> None:
        values = [1, 1.5, 3.0, -0.0, 1e100, 10**30, True, False, None, "", "x", ["é", 1], {"a": {"b": None}}]
        bench.ingest(as_jsonl([{"text": "t", "value": value} for value in values]), "data.jsonl")
        assert [row["value"] for row in bench.rows] == [
            *("1", "1.5", "3", "-0", "1e+100", str(10**30), "true", "false", None, "", "x"),
            *('["é",1]', '{"a":{"b":null}}'),
        ]

    def test_json_columns_are_all_keys_and_a_missing_one_is_null(self, bench: Workbench) -> None:
        lines: list[dict[str, Any]] = [{"text": f"t{number}"} for number in range(2_000)]
        report = bench.ingest(as_jsonl([*lines, {"late": 1, "text": "x"}]), "data.jsonl")
        assert report.facts.headers == ["text", "late"]
        assert bench.rows[0] == {"text": "t0", "late": None}
        assert bench.rows[-1] == {"text": "x", "late": "1"}

    def test_parquet_values_are_stored_as_json(self, bench: Workbench) -> None:
        content = as_parquet(
            {
                "text": pa.array(["a", None]).dictionary_encode(),
                "large": pa.array(["a", "b"], pa.large_string()),
                "bytes": pa.array([b"caf\xc3\xa9", None]),
                "integer": pa.array([1, None], pa.int8()),
                "single": pa.array([0.1, float("nan")], pa.float32()),
                "double": pa.array([2.0, 0.25]),
                "boolean": pa.array([True, False]),
                "decimal": pa.array([Decimal("1.50"), None]),
                "nothing": pa.nulls(2),
                "labels": pa.array([["a", "é"], None]),
                "soft": pa.array([{"a": 0.5}, {"a": 1.0}]),
                "day": pa.array([0, 1], pa.date32()),
            }
        )
        bench.ingest(content, "data.parquet")
        assert bench.rows == [
            {
                "text": "a",
                "large": "a",
                "bytes": "café",
                "integer": "1",
                "single": "0.1",
                "double": "2",
                "boolean": "true",
                "decimal": "1.50",
                "nothing": None,
                "labels": '["a","é"]',
                "soft": '{"a":0.5}',
                "day": "1970-01-01",
            },
            {
                "text": None,
                "large": "b",
                "bytes": None,
                "integer": None,
                "single": None,
                "double": "0.25",
                "boolean": "false",
                "decimal": None,
                "nothing": None,
                "labels": None,
                "soft": '{"a":1.0}',
                "day": "1970-01-02",
            },
        ]

    @given(
        rows=st.lists(
            st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 3),
            min_size=1,
            max_size=20,
        )
    )
    def test_any_text_survives_csv(self, rows: list[tuple[str, str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([("text", "label", "other"), *rows])
        with tempfile.TemporaryDirectory() as folder:
            workbench = Workbench(Path(folder))
            workbench.ingest(text.getvalue().encode())
            assert [tuple(row.values()) for row in workbench.rows] == rows

    @given(cells=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
    def test_any_text_survives_json(self, cells: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            workbench = Workbench(Path(folder))
            workbench.ingest(as_jsonl([{"text": cell} for cell in cells]), "data.jsonl")
            assert [row["text"] for row in workbench.rows] == cells


class TestFacts:
    def test_counts_are_those_of_the_file(self, bench: Workbench) -> None:
        content = "text,text_pair,label,split\nab,c,x,train\n \t,d,y,dev\n,,x,test\nefg,, ,Train\nh,i,,train\n"
        facts = bench.ingest(content.encode()).facts
        assert facts.model_dump(exclude={"headers", "columns"}) == {
            "rows": 5,
            "recognised": ["text", "text_pair", "label", "split"],
            "empty_texts": 2,
            "first_empty_text": 2,
            "missing_labels": 2,
            "first_missing_label": 4,
            "labels": {"x": 2, "y": 1},
            "distinct_labels": 2,
            "splits": {"train": 3, "validation": 1, "test": 1},
            "text_characters": 2 + 1 + 2 + 1 + 0 + 3 + 1 + 1,
        }

    def test_given_columns_win_over_recognised_ones(self, bench: Workbench) -> None:
        facts = bench.ingest(b"text,body,topic\na,b,c\n", columns={"text": "body", "label": "topic"}).facts
        assert (facts.columns.text, facts.columns.label, facts.recognised) == ("body", "topic", [])

    def test_labels_are_compared_as_they_are(self, bench: Workbench) -> None:
        assert bench.ingest(b"text,label\na,x\nb, x\nc,X\n").facts.labels == {" x": 1, "X": 1, "x": 1}

    def test_too_many_labels_are_not_listed(self, bench: Workbench) -> None:
        rows = "".join(f"t,{number}\n" for number in range(MAX_LABELS + 1))
        facts = bench.ingest(f"text,label\n{rows}".encode()).facts
        assert (facts.labels, facts.distinct_labels) == ({}, MAX_LABELS + 1)

    def test_as_many_labels_as_allowed_are_listed(self, bench: Workbench) -> None:
        rows = "".join(f"t,{number}\n" for number in range(MAX_LABELS))
        assert len(bench.ingest(f"text,label\n{rows}".encode()).facts.labels) == MAX_LABELS

    def test_the_report_names_the_bytes_read_and_written(self, bench: Workbench) -> None:
        report = bench.ingest(content := as_csv(ROWS))
        stored = bench.destination.read_bytes()
        assert (report.rows, report.source_bytes, report.bytes) == (3, len(content), len(stored))
        assert report.source_sha256 == hashlib.sha256(content).hexdigest()
        assert report.sha256 == hashlib.sha256(stored).hexdigest()

    def test_the_same_file_gives_the_same_bytes(self, bench: Workbench) -> None:
        assert bench.ingest(as_csv(ROWS)).sha256 == bench.ingest(as_csv(ROWS)).sha256


class TestStoredFile:
    def test_rows_are_stored_in_zstd_groups_of_64k(self, bench: Workbench) -> None:
        bench.ingest(("text\n" + "t\n" * (ROW_GROUP_ROWS + 5)).encode())
        stored = parquet.ParquetFile(bench.destination)
        assert [stored.metadata.row_group(group).num_rows for group in range(2)] == [ROW_GROUP_ROWS, 5]
        assert stored.metadata.row_group(0).column(0).compression == "ZSTD"
        assert stored.schema_arrow == pa.schema([("text", pa.string())])

    def test_long_texts_make_smaller_groups(self, bench: Workbench) -> None:
        bench.ingest(("text\n" + f"{'t' * 100_000}\n" * 400).encode())
        stored = parquet.ParquetFile(bench.destination).metadata
        assert stored.num_row_groups > 1
        assert all(stored.row_group(group).total_byte_size < 20_000_000 for group in range(stored.num_row_groups))

    @pytest.mark.parametrize(
        ("start", "count"), [(0, 3), (ROW_GROUP_ROWS - 2, 5), (ROW_GROUP_ROWS, 1), (2 * ROW_GROUP_ROWS, 50), (10**6, 2)]
    )
    def test_a_page_holds_just_its_rows(self, bench: Workbench, start: int, count: int) -> None:
        total = 2 * ROW_GROUP_ROWS + 7
        bench.ingest(("text\n" + "".join(f"t{number}\n" for number in range(total))).encode())
        expected = [{"text": f"t{number}"} for number in range(start, min(start + count, total))]
        assert read_page(bench.destination, start, count) == expected

    def test_columns_are_read_by_name(self, bench: Workbench) -> None:
        bench.ingest(as_csv(ROWS))
        assert read_columns(bench.destination, ["split", "label"]) == {
            "split": ["train", "validation", "test"],
            "label": ["delivery", "refund", "other"],
        }


class TestRefusals:
    @pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
    def test_an_empty_file_is_refused(self, bench: Workbench, content: bytes) -> None:
        problem = bench.refuse(content)
        assert (problem.pointer, problem.code) == ("/file", "empty_file")

    @pytest.mark.parametrize(
        ("content", "filename"),
        [
            (b"text,label\n", "data.csv"),
            (b"\n  \n", "data.jsonl"),
            (as_parquet({"text": pa.array([], pa.string())}), "data.parquet"),
        ],
    )
    def test_a_file_without_rows_is_refused(self, bench: Workbench, content: bytes, filename: str) -> None:
        assert bench.refuse(content, filename).code == "no_rows"

    @pytest.mark.parametrize(("content", "filename"), [(b"\n\n", "data.csv"), (b"{}\n", "data.jsonl")])
    def test_a_file_without_columns_is_refused(self, bench: Workbench, content: bytes, filename: str) -> None:
        assert bench.refuse(content, filename).code == "no_columns"

    def test_bytes_in_another_encoding_are_refused_with_their_place(self, bench: Workbench) -> None:
        good = "text\n" + "fünf\n" * 100_000
        problem = bench.refuse(good.encode() + "sechs é\n".encode("cp1252"))
        offset = len(good.encode()) + len("sechs ")
        assert problem.code == "invalid_encoding"
        assert f"byte 0xe9 at offset {offset:,} (line 100,002)" in problem.message
        assert "encoding=cp1252" in problem.message

    def test_the_place_is_right_after_a_byte_order_mark(self, bench: Workbench) -> None:
        assert "at offset 8 (line 2)" in bench.refuse(b"\xef\xbb\xbftext\n\xff\n").message

    def test_bytes_cut_inside_a_character_are_refused(self, bench: Workbench) -> None:
        assert "at offset 6 (line 2)" in bench.refuse("text\na漢".encode()[:-1]).message

    def test_utf16_is_named_by_its_mark(self, bench: Workbench) -> None:
        assert "encoding=utf-16" in bench.refuse("text\na\n".encode("utf-16")).message

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
    def test_an_encoding_with_a_byte_order_needs_to_be_told_which(self, bench: Workbench, encoding: str) -> None:
        content = "text\nhello\n".encode(f"{encoding}-le")
        problem = bench.refuse(content, encoding=encoding)
        assert (problem.pointer, problem.code) == ("/encoding", "invalid_encoding")
        assert f"{encoding}-le" in problem.message
        bench.ingest(content, encoding=f"{encoding}-le")
        assert bench.rows == [{"text": "hello"}]

    @pytest.mark.parametrize("encoding", ["utf8000", "utf-7", "base64", "idna", "\0"])
    def test_an_unknown_encoding_is_refused(self, bench: Workbench, encoding: str) -> None:
        problem = bench.refuse(b"text\na\n", encoding=encoding)
        assert (problem.pointer, problem.code) == ("/encoding", "unknown_encoding")

    @pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n"])
    def test_an_impossible_delimiter_is_refused(self, bench: Workbench, delimiter: str) -> None:
        problem = bench.refuse(b"text\na\n", delimiter=delimiter)
        assert (problem.pointer, problem.code) == ("/delimiter", "invalid_delimiter")

    @pytest.mark.parametrize("content", [b"text\na\n", b"\x1f\x8bnonsense", b"\x1f\x8b\x08\x00" + bytes(40)])
    def test_what_only_claims_to_be_gzip_is_refused(self, bench: Workbench, content: bytes) -> None:
        assert bench.refuse(content, "data.csv.gz").code == "invalid_gzip"

    def test_gzip_with_a_wrong_checksum_is_refused(self, bench: Workbench) -> None:
        packed = bytearray(gzip.compress(b"text\na\n"))
        packed[-8] ^= 1
        assert bench.refuse(bytes(packed)).code == "invalid_gzip"

    @pytest.mark.parametrize("kind", FORMATS)
    def test_gzip_cut_off_mid_way_is_refused(self, bench: Workbench, kind: str) -> None:
        filename, content = FORMATS[kind]
        assert bench.refuse(gzip.compress(content)[:-9], f"{filename}.gz").code == "truncated_gzip"

    def test_what_only_claims_to_be_parquet_is_refused(self, bench: Workbench) -> None:
        assert bench.refuse(b"text\na\n", "data.parquet").code == "invalid_parquet"

    def test_parquet_cut_off_mid_way_is_refused(self, bench: Workbench) -> None:
        _filename, content = FORMATS["parquet"]
        assert bench.refuse(content[:-100]).code == "truncated_file"

    def test_parquet_with_a_broken_index_is_refused(self, bench: Workbench) -> None:
        _filename, content = FORMATS["parquet"]
        assert bench.refuse(content[:4] + bytes(200) + content[-8:]).code == "invalid_parquet"

    def test_parquet_with_a_broken_page_is_refused(self, bench: Workbench) -> None:
        content = bytearray(as_parquet({"text": [f"text {number}" for number in range(1_000)]}))
        content[4:400] = bytes(396)
        assert bench.refuse(bytes(content)).code == "invalid_parquet"

    def test_parquet_text_that_is_no_utf8_is_refused(self, bench: Workbench) -> None:
        texts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
        problem = bench.refuse(as_parquet({"text": texts}))
        assert problem.code == "invalid_value"
        assert "column 'text'" in problem.message

    @pytest.mark.parametrize("values", [pa.array([b"\xff"]), pa.array([[b"a"]]), pa.array([float("inf")])])
    def test_parquet_values_that_have_no_text_are_refused(self, bench: Workbench, values: pa.Array) -> None:
        problem = bench.refuse(as_parquet({"text": ["a"], "value": values}))
        assert problem.code == "invalid_value"
        assert "column 'value'" in problem.message

    @pytest.mark.parametrize(
        "content", [b"PK\x03\x04 an Excel workbook", b"%PDF-1.7", gzip.compress(b"PK\x03\x04", mtime=0), b"BZh91AY"]
    )
    def test_another_kind_of_file_is_refused(self, bench: Workbench, content: bytes) -> None:
        assert bench.refuse(content).code == "unknown_format"

    def test_a_quote_that_is_never_closed_is_refused(self, bench: Workbench) -> None:
        problem = bench.refuse(b'text,label\na,b\n"c\nd,e\n')
        assert problem.code == "truncated_file"
        assert "starts on line 3" in problem.message

    def test_a_file_cut_off_mid_way_is_refused(self, bench: Workbench) -> None:
        problem = bench.refuse(b"text,label\na,b\nc")
        assert problem.code == "truncated_file"
        assert "line 3 has 1 cell, and the header 2" in problem.message

    @pytest.mark.parametrize("row", ["a", "a,b,c"])
    def test_a_row_with_a_wrong_number_of_cells_is_refused(self, bench: Workbench, row: str) -> None:
        problem = bench.refuse(f'text,label\n"two\nlines",b\n{row}\nc,d\n'.encode())
        assert problem.code == "wrong_cell_count"
        assert f"line 4 has {row.count(',') + 1} cell" in problem.message

    def test_text_after_a_closed_quote_is_refused(self, bench: Workbench) -> None:
        problem = bench.refuse(b'text,label\na,b\n"c"d,e\n')
        assert problem.code == "invalid_csv"
        assert "line 3" in problem.message

    @pytest.mark.parametrize(
        ("content", "filename"),
        [(b"text,a,a\n1,2,3\n", "data.csv"), (b"text\tb\tb\n1\t2\t3\n", "data.tsv")],
    )
    def test_duplicate_headers_are_refused(self, bench: Workbench, content: bytes, filename: str) -> None:
        assert bench.refuse(content, filename).code == "duplicate_column"

    @pytest.mark.parametrize(("content", "filename"), [(b",text\n1,a\n", "data.csv"), (b'{"": 1}\n', "data.jsonl")])
    def test_an_empty_header_is_refused(self, bench: Workbench, content: bytes, filename: str) -> None:
        problem = bench.refuse(content, filename)
        assert problem.code == "empty_column_name"
        assert "column 1 " in problem.message

    def test_a_header_as_long_as_a_text_is_refused(self, bench: Workbench) -> None:
        assert bench.refuse(b"a" * 1_001 + b"\nb\n").code == "column_name_too_long"

    @pytest.mark.parametrize(
        "line",
        ["{", '{"text": NaN}', '{"text": 1e999}', '{"text": ' + "1" * 5_000 + "}", "[" * 100_000, '{"text": "a\tb"}'],
    )
    def test_invalid_json_is_refused_with_its_line(self, bench: Workbench, line: str) -> None:
        problem = bench.refuse(f'{{"text": "a"}}\n\n{line}\n'.encode(), "data.jsonl")
        assert problem.code == "invalid_json"
        assert "line 3" in problem.message

    @pytest.mark.parametrize("line", ["[1]", "3", '"\\ud800"', "null"])
    def test_a_line_that_is_no_object_is_refused(self, bench: Workbench, line: str) -> None:
        problem = bench.refuse(f'{{"text": "a"}}\n{line}\n'.encode(), "data.jsonl")
        assert problem.code == "not_an_object"
        assert "line 2" in problem.message
        problem.message.encode()

    @pytest.mark.parametrize("escape", ["\\ud83d", "\\u0000"])
    @pytest.mark.parametrize("place", ["cell", "header"])
    def test_characters_that_are_no_text_are_refused(self, bench: Workbench, escape: str, place: str) -> None:
        line = '{"text": "ok"}\n' + (f'{{"text": "{escape}"}}' if place == "cell" else f'{{"te{escape}xt": ""}}')
        problem = bench.refuse(line.encode(), "data.jsonl")
        assert problem.code == "invalid_character"
        assert ("row 2" if place == "cell" else "column 2") in problem.message
        problem.message.encode()

    def test_a_nul_in_csv_is_refused(self, bench: Workbench) -> None:
        assert bench.refuse(b"text,label\na,b\nc,d\0\n").code == "invalid_character"

    @pytest.mark.parametrize("kind", FORMATS)
    def test_a_cell_over_the_limit_is_refused(self, bench: Workbench, kind: str) -> None:
        rows = [*ROWS, {**ROWS[0], "text": "é" * 51}]
        contents = {
            "csv": as_csv(rows),
            "tsv": as_csv(rows, "\t"),
            "jsonl": as_jsonl(rows),
            "parquet": as_parquet({name: [row[name] for row in rows] for name in rows[0]}),
        }
        problem = bench.refuse(contents[kind], FORMATS[kind][0], max_cell_bytes=101)
        assert problem.code == "cell_too_large"
        assert "row 4" in problem.message
        assert bench.ingest(contents[kind], FORMATS[kind][0], max_cell_bytes=102).rows == 4

    def test_a_cell_far_over_the_limit_is_refused_before_it_is_held(self, bench: Workbench) -> None:
        problem = bench.refuse(b'text\na\n"' + b"b\n" * 1_000_000, max_cell_bytes=1_000_000)
        assert problem.code == "cell_too_large"
        assert "starts on line 3" in problem.message

    def test_a_line_that_never_ends_is_refused(self, bench: Workbench) -> None:
        assert bench.refuse(b"text\n" + b"a" * 16_000_001, max_cell_bytes=100_000_000).code == "row_too_large"

    @pytest.mark.parametrize("kind", FORMATS)
    def test_too_many_columns_are_refused(self, bench: Workbench, kind: str) -> None:
        problem = bench.refuse(FORMATS[kind][1], FORMATS[kind][0], max_columns=2)
        assert problem.code == "too_many_columns"

    @pytest.mark.parametrize("kind", FORMATS)
    def test_too_many_rows_are_refused(self, bench: Workbench, kind: str) -> None:
        assert bench.refuse(FORMATS[kind][1], FORMATS[kind][0], max_rows=2).code == "too_many_rows"
        assert bench.ingest(FORMATS[kind][1], FORMATS[kind][0], max_rows=3).rows == 3

    @pytest.mark.parametrize("kind", FORMATS)
    def test_too_many_bytes_are_refused(self, bench: Workbench, kind: str) -> None:
        content = FORMATS[kind][1]
        assert bench.refuse(content, FORMATS[kind][0], max_bytes=20).code == "file_too_large"
        assert bench.refuse(gzip.compress(content), f"{FORMATS[kind][0]}.gz", max_bytes=20).code == "file_too_large"

    def test_a_compression_bomb_is_stopped_while_it_unpacks(self, bench: Workbench) -> None:
        bomb = gzip.compress(b"text\n" + b"\n" * 50_000_000)
        assert len(bomb) < 100_000
        problem = bench.refuse(bomb, max_bytes=1_000_000)
        assert problem.code == "file_too_large"
        assert "1,000,000 bytes once decompressed" in problem.message

    @pytest.mark.parametrize(("value", "shown"), [("fold1", '"fold1"'), ("", '""'), ("trian", "Did you mean 'train'?")])
    def test_an_unknown_split_is_refused_with_its_row(self, bench: Workbench, value: str, shown: str) -> None:
        problem = bench.refuse(f"text,split\na,train\nb,{value}\n".encode())
        assert (problem.pointer, problem.code) == ("/columns/split", "unknown_split")
        assert "row 2" in problem.message
        assert shown in problem.message

    def test_a_missing_split_is_refused(self, bench: Workbench) -> None:
        assert "null" in bench.refuse(as_jsonl([{"text": "a", "split": None}]), "data.jsonl").message

    def test_a_file_without_a_text_column_is_refused(self, bench: Workbench) -> None:
        problem = bench.refuse(b"body,label\na,b\n")
        assert (problem.pointer, problem.code) == ("/columns/text", "missing_column")

    def test_a_column_that_is_not_there_is_refused(self, bench: Workbench) -> None:
        problem = bench.refuse(b"text,label\na,b\n", columns={"label": "lable"})
        assert (problem.pointer, problem.code) == ("/columns/label", "unknown_column")


class TestProgram:
    def run(self, bench: Workbench, content: bytes, options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        bench.source.write_bytes(content)
        command = [sys.executable, "-m", "ml.data.ingest", str(bench.source), str(bench.destination)]
        child = subprocess.run([*command, json.dumps(options)], capture_output=True, check=False)
        return child.returncode, json.loads(child.stdout) if child.stdout else {}

    def test_it_prints_the_report(self, bench: Workbench) -> None:
        code, answer = self.run(bench, as_csv(ROWS), {"memory_bytes": 2_000_000_000, "cpu_seconds": 60})
        assert code == 0
        assert IngestReport.model_validate(answer["report"]).rows == 3

    def test_it_prints_the_problems(self, bench: Workbench) -> None:
        code, answer = self.run(bench, b"", {})
        assert code == 1
        assert answer["problems"][0]["code"] == "empty_file"
        assert set(answer["problems"][0]) == {"pointer", "message", "code"}

    def test_a_bomb_that_needs_more_memory_than_allowed_is_a_problem_and_no_crash(self, bench: Workbench) -> None:
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000), ["x" * 900_000])
        bomb = io.BytesIO()
        parquet.write_table(pa.table({"text": texts}), bomb, store_schema=False)
        assert len(bomb.getvalue()) < 1_000_000
        _code, answer = self.run(bench, bomb.getvalue(), {"memory_bytes": 600_000_000})
        assert answer["problems"][0]["code"] == "parser_out_of_memory"

    def test_its_time_limit_stops_it(self, bench: Workbench) -> None:
        code, _answer = self.run(bench, b"text\n" + b"a\n" * 30_000_000, {"cpu_seconds": 1})
        assert code < 0

    def test_it_loads_no_torch(self) -> None:
        look = "import sys, ml.data.ingest; print(sorted({'torch', 'transformers', 'fastapi'} & set(sys.modules)))"
        assert subprocess.check_output([sys.executable, "-c", look]).strip() == b"[]"
