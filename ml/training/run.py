"""A run directory: what a run is told, and what it tells. It knows files, and nothing of who reads them.

RUN_DIR/spec.json       the job spec, or another kind's
        rows.parquet    the rows, normalised, and facts.json, what is known of them
        data.csv        or .tsv, .jsonl, .parquet: a run by hand brings this instead, and it is normalised first
        run.json        what to do, and where things are on this machine (optional)
        events.jsonl    what happens, one JSON object a line
        checkpoints/    one folder each
        artifact/       the finished model
        base/           the shared encoder, for a model that stores only its head
        output/         the files of a prediction batch
        result.json     what a dry run found, or a comparison, or came of a prediction batch
        arms/           the present run of a comparison
        error.json      why it failed
"""

import json
import logging
import time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ml.artifact.description import Source
from ml.data.ingest import IngestOptions, ingest
from ml.specs.base import Spec
from ml.specs.errors import explain_validation, refuse
from ml.specs.facts import DatasetFacts
from ml.specs.job import JobKind

log = logging.getLogger(__name__)

ReadSpec = TypeVar("ReadSpec", bound=Spec)


class CachePlacement(BaseModel):
    """Where tokens and features are kept for later runs; the least recently used of them go first."""

    model_config = ConfigDict(extra="forbid")

    folder: Path
    max_bytes: int


class Placement(BaseModel):
    """run.json: what is wanted, and what this machine gives. Everything has a default: a run by hand needs none."""

    model_config = ConfigDict(extra="forbid")

    kind: JobKind = "training"
    base_models: dict[str, Path] = {}
    start: Path | None = None  # artifact of the model that is trained further
    model: tuple[Path, Path] | None = None  # that answers a whole dataset, as one of `teachers`
    dataset_sha256: str | None = None
    source: Source | None = None  # of the checkpoint that is published
    teachers: dict[str, tuple[Path, Path]] = {}  # by model id: artifact, and where its session and tokenizer are
    cache: CachePlacement | None = None
    threads: int = 0
    memory_bytes: int = 0
    nice: int = 0
    parent_pid: int | None = None  # the process whose end ends this run


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.checkpoints = self.path / "checkpoints"
        self.artifact = self.path / "artifact"
        self.base = self.path / "base"
        self.output = self.path / "output"
        self.rows = self.path / "rows.parquet"
        self.facts = self.path / "facts.json"
        self._events = self.path / "events.jsonl"

    def read_spec(self, kind: type[ReadSpec]) -> ReadSpec:
        """The spec of the run's kind. Raises SpecError."""
        try:
            given = json.loads((self.path / "spec.json").read_bytes())
        except (OSError, ValueError) as error:
            raise refuse("", f"spec.json cannot be read: {error}.", "unreadable_spec") from error
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            raise explain_validation(error, given) from error

    def read_placement(self) -> Placement:
        """run.json, or its defaults."""
        file = self.path / "run.json"
        return Placement.model_validate_json(file.read_bytes()) if file.exists() else Placement()

    def read_facts(self) -> DatasetFacts:
        """What is known of the rows. A data file that was put here by hand is normalised first."""
        if not self.facts.exists():
            uploaded = sorted(self.path.glob("data.*"))
            if not uploaded:
                raise refuse(
                    "/dataset", "the run directory holds neither facts.json with rows.parquet nor a data file."
                )
            self.facts.write_text(ingest(uploaded[0], self.rows, IngestOptions()).facts.model_dump_json())
        return DatasetFacts.model_validate_json(self.facts.read_bytes())

    def tell(self, kind: str, message: str, data: dict[str, Any] | None = None, *, level: str = "info") -> None:
        """Append one event. kind: message, metrics, checkpoint, status or progress."""
        event = {"type": kind, "level": level, "message": message, "data": data or {}, "created_at": time.time()}
        if kind != "progress":
            log.log(logging.getLevelName(level.upper()), "%s", message)
        with self._events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def write_result(self, result: BaseModel) -> None:
        """Write what a run without a model came to."""
        (self.path / "result.json").write_text(result.model_dump_json())

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        """Write why the run failed."""
        body = {"message": message, "type": "job_error", "param": param, "code": code}
        (self.path / "error.json").write_text(json.dumps(body, ensure_ascii=False))
