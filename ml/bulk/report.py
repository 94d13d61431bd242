"""What a job over a whole dataset comes to. It holds no texts, only figures and what its files are."""

from pydantic import BaseModel, Field

OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


class RequestCounts(BaseModel):
    """Rows by what became of them."""

    total: int
    completed: int = Field(description="Those of output.jsonl.")
    failed: int = Field(description="Those of errors.jsonl.")


class FileReport(BaseModel):
    """A file that can be downloaded."""

    bytes: int
    sha256: str


class PredictionBatchReport(BaseModel):
    """What a prediction batch came to."""

    request_counts: RequestCounts
    files: dict[str, FileReport] = Field(description=f"{OUTPUT} and {ERRORS}, by name.")
