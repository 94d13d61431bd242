"""The rules of datasets: from upload to rows, and away again. It knows no HTTP."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.audit.repository import record
from app.datasets import repository
from app.datasets.parser import Parser
from app.datasets.schemas import DatasetRowItem, UploadForm, row_id, row_number
from app.db.session import Database
from app.db.tables import DatasetRow
from app.errors import InUseError, InvalidInputError, NotFoundError
from app.http.idempotency import create_once, find_created, idempotency_of
from app.http.pagination import PageRequest
from app.ids import new_id
from app.jobs import repository as jobs
from app.keys.caller import Caller
from app.limits.service import LimitService
from app.settings import Settings
from app.storage import FileStore
from ml.crash_points import crash_point
from ml.data.report import IngestOptions, IngestReport
from ml.recommendation import Recommendation, recommend
from ml.resolve import needed_headers
from ml.specs.errors import explain_validation, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.job import JobSpec

COPY_BYTES = 1 << 20
MAX_FILENAME = 255


class DatasetService:
    """Datasets of every project."""

    def __init__(self, database: Database, store: FileStore, settings: Settings, limits: LimitService) -> None:
        self._database = database
        self._store = store
        self._limits = limits
        self._parser = Parser(settings)
        self._uploads = settings.scratch / "uploads"

    def upload_turn(self) -> AbstractAsyncContextManager[None]:
        """To be held around `create`. Raises UnavailableError where it does not come in time."""
        return self._parser.place()

    def create(
        self, caller: Caller, file: BinaryIO, filename: str | None, form: UploadForm, idempotency_key: str | None
    ) -> DatasetRow:
        """Read an upload and store it; a repeat under the same key returns what the first one made."""
        self._uploads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._uploads) as folder:
            source, parsed = Path(folder) / "source", Path(folder) / "data.parquet"
            shown_name = clean_filename(filename)
            request = {"file": _copy(file, source), "filename": shown_name, "form": form.model_dump()}
            idempotency = idempotency_of(caller, idempotency_key, request)
            with self._database.read() as session:
                if (earlier := find_created(session, DatasetRow, idempotency)) is not None:
                    return earlier
            self._limits.take_upload(caller, source.stat().st_size)
            options = IngestOptions(
                filename=shown_name,
                columns=form.columns,
                encoding=form.encoding,
                delimiter=form.delimiter,
            )
            row = _new_row(caller, shown_name, form, self._parser.parse(source, parsed, options))
            # The file first: a row never points to nothing.
            key = row.file
            self._store.put_file(parsed, key)
            crash_point("dataset.after_store")
        try:
            created = create_once(
                self._database, DatasetRow, idempotency, lambda session: self._add(session, caller, row)
            )
        except BaseException:
            self._delete_unless_stored(caller.project_id, key)
            raise
        crash_point("dataset.after_commit")
        if created is not row:
            self._store.delete(key)
        return created

    def _add(self, session: Session, caller: Caller, row: DatasetRow) -> DatasetRow:
        self._limits.check_stored(session, caller, row.bytes)
        session.add(row)
        record(session, caller, "dataset.created", row.id, name=row.name, bytes=row.bytes)
        return row

    def _delete_unless_stored(self, project_id: str, key: str) -> None:
        """Remove a file that no row names. A commit may have been carried out and only its answer lost."""
        with self._database.read() as session:
            is_stored = repository.find_by_file(session, project_id, key) is not None
        if not is_stored:
            self._store.delete(key)

    def get_row(self, project_id: str, dataset_id: str) -> DatasetRow:
        """A dataset of the project; NotFoundError where there is none."""
        with self._database.read() as session:
            return _found(repository.find(session, project_id, dataset_id), dataset_id)

    def list_page(
        self, project_id: str, request: PageRequest, metadata: Mapping[str, str]
    ) -> tuple[list[DatasetRow], bool]:
        """One page of the datasets that have these pairs of metadata, and whether more follow."""
        with self._database.read() as session:
            return repository.list_page(session, project_id, request, metadata)

    def delete(self, caller: Caller, dataset_id: str) -> None:
        """Remove a dataset that no live job needs, the row first. Raises NotFoundError and InUseError."""
        with self._database.write() as session:
            row = _found(repository.find_for_update(session, caller.project_id, dataset_id), dataset_id)
            if users := jobs.live_with_dataset(session, caller.project_id, dataset_id):
                raise InUseError("dataset", dataset_id, users)
            session.delete(row)
            record(session, caller, "dataset.deleted", dataset_id, name=row.name)
        self._store.discard(row.file)

    def facts(self, row: DatasetRow) -> DatasetFacts:
        """What parsing found."""
        return DatasetFacts.model_validate(row.facts)

    def read_rows(self, row: DatasetRow, request: PageRequest) -> tuple[list[DatasetRowItem], bool]:
        """One page of rows in the file's order, or from its end, and whether more follow."""
        from ml.data.pages import read_page  # loads pyarrow, which a process that only predicts need not hold

        if request.order == "asc":
            start = 0 if request.after is None else _cursor(request.after)
            end = min(start + request.limit, row.rows)
            has_more = end < row.rows
        else:
            end = row.rows if request.after is None else min(_cursor(request.after) - 1, row.rows)
            start = max(0, end - request.limit)
            has_more = start > 0
        with self._reading(row) as file:
            cells = read_page(file, start, end - start) if start < end else []
        items = [DatasetRowItem(id=row_id(number), cells=one) for number, one in enumerate(cells, start + 1)]
        return (items if request.order == "asc" else items[::-1]), has_more

    def read_column_values(self, row: DatasetRow, headers: Sequence[str]) -> dict[str, list[str | None]]:
        """Every cell of some columns."""
        from ml.data.rows import read_columns  # loads pyarrow, as above

        with self._reading(row) as file:
            return read_columns(file, headers)

    @contextmanager
    def _reading(self, row: DatasetRow) -> Iterator[Path]:
        """Its file. Raises NotFoundError where the dataset was deleted since its row was read."""
        try:
            yield self._store.local_path(row.file)
        except FileNotFoundError:
            self.get_row(row.project_id, row.id)
            raise

    def recommend(self, row: DatasetRow, base: BaseFacts, metric: str | None) -> Recommendation:
        """Which loss to begin with. Raises SpecError where no job could be trained on the dataset."""
        facts = self.facts(row)
        cells = self.read_column_values(row, needed_headers(JobSpec(dataset=row.id), facts))
        return recommend(facts, base, cells, metric)

    def stream(self, row: DatasetRow) -> Iterator[bytes]:
        """The stored Parquet file, in pieces."""
        return self._store.stream(row.file)


def read_form(
    name: str | None, columns: str | None, encoding: str | None, delimiter: str | None, metadata: str | None
) -> UploadForm:
    """Check an upload's form fields, two of which are JSON objects in text; SpecError names what is wrong."""
    body: dict[str, Any] = {"name": name, "encoding": encoding, "delimiter": delimiter}
    if columns is not None:
        body["columns"] = _json_object("columns", columns, '{"text": "sentence1", "label": "score"}')
    if metadata is not None:
        body["metadata"] = _json_object("metadata", metadata, '{"team": "nlp"}')
    try:
        return UploadForm.model_validate(body)
    except ValidationError as error:
        raise explain_validation(error, body) from None


def _json_object(field: str, text: str, example: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be neither stored nor shown
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise refuse(f"/{field}", f"'{field}' is no JSON object. Write it like {example}.", "invalid_json")
    return value


def clean_filename(name: str | None) -> str:
    """A name that is safe to show: no folders, nothing invisible, not too long. It is never used as a path."""
    base = re.split(r"[/\\]", name or "")[-1]
    return "".join(character for character in base if character.isprintable()).strip()[-MAX_FILENAME:] or "upload"


def _copy(file: BinaryIO, target: Path) -> str:
    """Copy an upload in pieces; return its sha256."""
    digest = hashlib.sha256()
    with target.open("wb") as copy:
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()


def _new_row(caller: Caller, filename: str, form: UploadForm, report: IngestReport) -> DatasetRow:
    dataset_id = new_id("ds")
    return DatasetRow(
        id=dataset_id,
        project_id=caller.project_id,
        key_lineage=caller.lineage,
        name=form.name or filename,
        file=f"datasets/{dataset_id}/data.parquet",
        sha256=report.sha256,
        bytes=report.bytes,
        rows=report.rows,
        facts=report.facts.model_dump(),
        source={
            "filename": filename,
            "format": report.format,
            "bytes": report.source_bytes,
            "sha256": report.source_sha256,
        },
        extra=form.metadata,
        created_at=time.time(),
    )


def _found(row: DatasetRow | None, dataset_id: str) -> DatasetRow:
    if row is None:
        raise NotFoundError(f"There is no dataset '{dataset_id}'.", code="dataset_not_found")
    return row


def _cursor(after: str) -> int:
    number = row_number(after)
    if number is None:
        raise InvalidInputError(
            f"'after' is '{after}', and must be the id of a row, e.g. {row_id(1)}.",
            code="invalid_cursor",
            param="after",
        )
    return number
