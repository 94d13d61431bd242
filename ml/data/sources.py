"""A file as it was uploaded: which format it is, and its bytes and lines, decompressed, counted and decoded.

It knows nothing of rows and columns.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ml.data.report import RATIO_FROM_BYTES, IngestOptions
from ml.specs.errors import SpecError, did_you_mean, refuse, show

Kind = Literal["csv", "tsv", "jsonl", "parquet"]

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
FOREIGN_MAGIC = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF": "a PDF",
}
SUFFIXES: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
# Python's names. Codecs that hide bytes in ASCII (utf-7, punycode, unicode_escape) are no text encodings of files.
_ENCODING_NAMES = """
utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be ascii
gb18030 gbk gb2312 big5 big5hkscs shift_jis cp932 euc_jp euc_kr cp949
koi8-r koi8-u mac-roman mac-cyrillic cp437 cp850 cp852 cp866 cp874
cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258
iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8
iso8859-9 iso8859-10 iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16
"""
ENCODINGS = frozenset(_ENCODING_NAMES.split())
HEAD_BYTES = 1 << 16
READ_BYTES = 1 << 18
# No file needs longer lines, and without a bound a file with no line break would be held in memory whole.
MAX_LINE_CHARACTERS = 16_000_000


@dataclass
class Source:
    """One upload. `bytes_read` counts what was read of it, decompressed, since it was last opened."""

    path: Path
    kind: Kind
    is_gzip: bool
    encoding: str
    delimiter: str
    max_bytes: int | None
    max_ratio: int
    bytes_read: int = field(default=0, init=False)

    @property
    def format(self) -> str:
        """The format's name, e.g. csv.gz."""
        return f"{self.kind}.gz" if self.is_gzip else self.kind

    def open(self) -> io.BufferedReader:
        """Open the decompressed bytes; reading more of them than is allowed is refused while they are read."""
        self.bytes_read = 0
        return io.BufferedReader(_CountedReader(self), READ_BYTES)

    def check_size(self, size: int, state: str) -> None:
        """Refuse so many bytes, in the state they are in now, where they are too many, or for so small a file."""
        if self.max_bytes is not None and size > self.max_bytes:
            raise refuse(
                "/file",
                f"the file holds more than {self.max_bytes:,} bytes{state}, the most a dataset may have. Split it.",
                "file_too_large",
            )
        if size > RATIO_FROM_BYTES and size > self.max_ratio * self.path.stat().st_size:
            raise refuse(
                "/file",
                f"the file holds more than {self.max_ratio} times its own bytes{state}, which is a decompression bomb, "
                "or a text that hardly changes. Upload it as plain CSV.",
                "compression_ratio",
            )

    def lines(self) -> Iterator[str]:
        """Every line, decoded, with its line break."""
        number = 0
        with io.TextIOWrapper(self.open(), encoding=self.encoding, newline="") as text:
            try:
                while line := text.readline(MAX_LINE_CHARACTERS):
                    number += 1
                    if len(line) == MAX_LINE_CHARACTERS:
                        raise refuse(
                            "/file",
                            f"line {number} has more than {MAX_LINE_CHARACTERS:,} characters. Is this a text file with "
                            "a row a line?",
                            "row_too_large",
                        )
                    yield line
            except UnicodeDecodeError:
                raise self._undecodable() from None
            except UnicodeError:  # what Python says of UTF-16 and UTF-32 whose byte order is not told
                raise refuse(
                    "/encoding",
                    f"the file does not start with a byte order mark, as {self.encoding} must. Pass {self.encoding}-le "
                    f"or {self.encoding}-be where it is without one, and no encoding where it is UTF-8.",
                    "invalid_encoding",
                ) from None

    def _undecodable(self) -> SpecError:
        """Find the first byte that cannot be decoded, by reading the file again."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        offset, line = 0, 1
        with self.open() as file:
            while True:
                piece = file.read(READ_BYTES)
                offset += len(piece)
                try:
                    line += decoder.decode(piece, final=not piece).count("\n")
                except UnicodeDecodeError as error:
                    line += error.object[: error.start].count(b"\n")
                    position = offset - len(error.object) + error.start
                    return _not_in_encoding(error.object[error.start], position, line, self.encoding)
                if not piece:
                    raise AssertionError("a file that could not be decoded could be decoded the second time")


class _CountedReader(io.RawIOBase):
    """Raw bytes of a source, decompressed: it counts them, stops at the limit and explains broken gzip."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # Closed by close(), as any stream closes the one below it.
        self._file: Any = gzip.open(source.path) if source.is_gzip else source.path.open("rb", buffering=0)  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        try:
            count: int = self._file.readinto(buffer)
        except EOFError:
            raise refuse(
                "/file", "the gzip file ends before its end mark: it was cut off. Upload it again.", "truncated_gzip"
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise refuse("/file", f"the gzip file is broken ({error}). Compress it again.", "invalid_gzip") from None
        source = self._source
        source.bytes_read += count
        source.check_size(source.bytes_read, " once decompressed" * source.is_gzip)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_source(path: Path, options: IngestOptions) -> Source:
    """Find out what a file is: by its first bytes, else by its name, else by its first characters."""
    name = (options.filename or path.name).lower()
    source = Source(path, "csv", False, _encoding(options.encoding), ",", options.max_bytes, options.max_ratio)
    with path.open("rb") as file:
        source.is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    if name.endswith(".gz") and not source.is_gzip and path.stat().st_size:
        raise refuse("/file", f"{show(name)} is no gzip file, as its name says it is. Rename it.", "invalid_gzip")
    with source.open() as opened:
        head = opened.read(HEAD_BYTES)
    if not head:
        raise refuse("/file", "the file is empty (0 bytes). Upload a header and at least one row.", "empty_file")
    if source.is_gzip and head.startswith(GZIP_MAGIC):
        raise refuse("/file", "the gzip file holds another gzip file. Compress it once.", "unknown_format")
    for magic, what in FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise refuse(
                "/file", f"the file is {what}. Upload CSV, TSV, JSONL or Parquet, plain or gzip.", "unknown_format"
            )
    source.kind = _kind(head, name.removesuffix(".gz"), source.encoding)
    if source.kind in {"csv", "tsv"}:
        source.delimiter = _delimiter(options.delimiter, source.kind, _first_line(head, source.encoding))
        source.kind = "tsv" if source.delimiter == "\t" else "csv"
    return source


def _encoding(name: str | None) -> str:
    if name is None:
        return "utf-8-sig"  # UTF-8, with or without a byte order mark
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        found = ""
    if found not in ENCODINGS:
        raise refuse(
            "/encoding",
            f"{show(name)} is no encoding known here.{did_you_mean(name.lower(), ENCODINGS)} Examples: utf-8, utf-16, "
            "cp1252, latin-1, gb18030, shift_jis.",
            "unknown_encoding",
        )
    return "utf-8-sig" if found == "utf-8" else found


def _kind(head: bytes, name: str, encoding: str) -> Kind:
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    kind = SUFFIXES.get(Path(name).suffix)
    if kind == "parquet":
        raise refuse("/file", f"{show(name)} does not start as a Parquet file does, with PAR1.", "invalid_parquet")
    return kind or ("jsonl" if _first_line(head, encoding).startswith("{") else "csv")


def _first_line(head: bytes, encoding: str) -> str:
    return head.decode(encoding, "replace").lstrip().partition("\n")[0]


def _delimiter(given: str | None, kind: Kind, header_line: str) -> str:
    if given is not None:
        if len(given) != 1 or given in '"\r\n\0':
            raise refuse(
                "/delimiter",
                f"the delimiter is {show(given)}, and must be one character that is no quote and no line break.",
                "invalid_delimiter",
            )
        return given
    if kind == "tsv":
        return "\t"
    if "," in header_line:
        return ","
    return max(",\t;", key=header_line.count)


def _not_in_encoding(byte: int, position: int, line: int, encoding: str) -> SpecError:
    came = f"byte 0x{byte:02x} at offset {position:,} (line {line:,}) is not {encoding.removesuffix('-sig')} text."
    if position == 0 and byte in {0xFE, 0xFF}:
        fix = "This looks like UTF-16: pass encoding=utf-16."
    else:
        fix = "Pass the file's encoding, e.g. encoding=cp1252, latin-1, gb18030 or utf-16, or save it as UTF-8."
    return refuse("/file", f"{came} {fix}", "invalid_encoding")
