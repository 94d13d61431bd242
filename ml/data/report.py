"""What ingestion is asked and what it answers. Kept apart from the parser, so that a caller need not load pyarrow."""

from pydantic import BaseModel, ConfigDict, Field

from ml.specs.facts import DatasetFacts

# Below it even a file of one repeated line is small.
RATIO_FROM_BYTES = 50_000_000


class IngestOptions(BaseModel):
    """How to read an upload, and how much of it. A limit that is None is not enforced."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filename: str | None = None  # the name the user gave the file; the source's own name otherwise
    columns: dict[str, str] = Field(default_factory=dict)  # role -> header
    encoding: str | None = None
    delimiter: str | None = None
    max_bytes: int | None = None  # after decompression
    max_ratio: int = 200  # decompressed bytes for each that was uploaded, from RATIO_FROM_BYTES on
    max_rows: int | None = None
    max_columns: int = 1_000
    max_cell_bytes: int = 1_000_000
    memory_bytes: int | None = None  # address space of the program
    cpu_seconds: int | None = None  # processor time of the program


class IngestReport(BaseModel):
    """What was found and written."""

    facts: DatasetFacts
    rows: int
    bytes: int  # of the Parquet file
    sha256: str
    source_bytes: int  # of the file as uploaded
    source_sha256: str
    format: str  # csv, tsv, jsonl or parquet, with .gz after it when it was compressed
