"""Models: what a finished job left in the store. It knows folders and rows, not how a model answers."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from app.db.session import Database
from app.db.tables import ModelRow
from app.errors import InUseError, NotFoundError
from app.http.pagination import PageRequest
from app.jobs import repository as jobs
from app.models import repository
from app.models.download import assemble
from app.storage import FileStore


class ModelService:
    """The rules of models."""

    def __init__(self, database: Database, store: FileStore, scratch: Path) -> None:
        self._database = database
        self._store = store
        self._scratch = scratch

    def get_row(self, project_id: str, model_id: str) -> ModelRow:
        """A project's model. Raises NotFoundError."""
        with self._database.read() as session:
            return _found(repository.find(session, project_id, model_id), model_id)

    def list_page(self, project_id: str, page: PageRequest, metadata: Mapping[str, str]) -> tuple[list[ModelRow], bool]:
        """One page of a project's models."""
        with self._database.read() as session:
            return repository.list_models(session, project_id, page, metadata)

    def delete(self, project_id: str, model_id: str) -> None:
        """Forget a model that no live job needs, then its files. Raises NotFoundError and InUseError.

        The row goes first: a model that is listed can be served. A shared encoder is left to the sweep.
        """
        with self._database.write() as session:
            row = _found(repository.find_for_update(session, project_id, model_id), model_id)
            if users := jobs.live_with_model(session, project_id, model_id):
                raise InUseError("model", model_id, users)
            session.delete(row)
        self._store.discard(row.folder)

    def folders(self, row: ModelRow) -> tuple[Path, Path]:
        """See `folders_of`."""
        return folders_of(self._store, row)

    def write_zip(self, row: ModelRow) -> Path:
        """A zip of the whole model in a temporary folder; the caller deletes that folder."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="download-", dir=self._scratch))
        try:
            return assemble(*self.folders(row), folder / f"{row.id}.zip")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _found(row: ModelRow | None, model_id: str) -> ModelRow:
    if row is None:
        hint = " That is a job's id: its model_id names the model." if model_id.startswith("job_") else ""
        raise NotFoundError(f"There is no model '{model_id}'.{hint}", code="model_not_found", param="/model")
    return row


def folders_of(store: FileStore, row: ModelRow) -> tuple[Path, Path]:
    """Where a model's artifact and its runtime (session and tokenizer) can be read on this machine."""
    artifact = store.local_path(row.folder)
    return artifact, artifact if row.base_folder is None else store.local_path(row.base_folder)
