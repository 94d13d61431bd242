"""Models: what a finished job left in the store. It knows folders and rows, not how a model answers."""

import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from app.aliases import repository as aliases
from app.audit.repository import record
from app.db.session import Database
from app.db.tables import ModelRow
from app.errors import ConflictError, InUseError, NotFoundError
from app.http.pagination import PageRequest
from app.jobs import repository as jobs
from app.keys.caller import Caller
from app.models import repository
from app.models.download import assemble
from app.models.repository import Name
from app.storage import FileStore


class ModelService:
    """The rules of models."""

    def __init__(self, database: Database, store: FileStore, scratch: Path) -> None:
        self._database = database
        self._store = store
        self._scratch = scratch

    def get_row(self, project_id: str, name: str) -> ModelRow:
        """A project's model, by its id or an alias. Raises NotFoundError."""
        with self._database.read() as session:
            row = repository.resolve(session, project_id, name)
        if row is None:
            raise not_found(name)
        return row

    def ids_of(self, names: Collection[Name]) -> dict[Name, str]:
        """See the repository; without names it asks nothing."""
        if not names:
            return {}
        with self._database.read() as session:
            return repository.ids_of(session, names)

    def find_everywhere(self, name: str) -> list[tuple[str, str]]:
        """The project and the id of every model with this id or alias, in whatever project: for the operator."""
        with self._database.read() as session:
            return repository.find_everywhere(session, name)

    def list_page(self, project_id: str, page: PageRequest, metadata: Mapping[str, str]) -> tuple[list[ModelRow], bool]:
        """One page of a project's models."""
        with self._database.read() as session:
            return repository.list_models(session, project_id, page, metadata)

    def delete(self, caller: Caller, model_id: str) -> None:
        """Forget a model that no live job and no alias needs, then its files. Raises NotFoundError and ConflictError.

        The row goes first: a model that is listed can be served. A shared encoder is left to the sweep.
        """
        with self._database.write() as session:
            row = repository.find_for_update(session, caller.project_id, model_id)
            if row is None:
                raise not_found(model_id)
            if names := aliases.names_of(session, model_id):
                raise ConflictError(
                    f"The model '{model_id}' is what the alias {', '.join(map(repr, names))} stands for. Point it at "
                    "another model, or delete it, first.",
                    code="model_in_use",
                )
            if users := jobs.live_with_model(session, caller.project_id, model_id):
                raise InUseError("model", model_id, users)
            session.delete(row)
            record(session, caller, "model.deleted", model_id, name=row.name)
        self._store.discard(row.folder)

    def folders(self, row: ModelRow) -> tuple[Path, Path]:
        """See `folders_of`."""
        return folders_of(self._store, row)

    def write_zip(self, row: ModelRow) -> Path:
        """A zip of the whole model in a temporary folder; the caller deletes that folder.

        Raises NotFoundError where the model was deleted meanwhile.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="download-", dir=self._scratch))
        try:
            return assemble(*self.folders(row), folder / f"{row.id}.zip")
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                self.get_row(row.project_id, row.id)
            raise


def not_found(name: str) -> NotFoundError:
    """There is no such model, nor an alias of this name."""
    hint = "GET /v1/models lists yours."
    if name.startswith("job_"):
        hint = "That is a job's id: its model_id names the model, once it has succeeded."
    kind = "model" if name.startswith(repository.ID_PREFIX) else "model or alias"
    return NotFoundError(f"There is no {kind} '{name}'. {hint}", code="model_not_found", param="/model")


def folders_of(store: FileStore, row: ModelRow) -> tuple[Path, Path]:
    """Where a model's artifact and its runtime (session and tokenizer) can be read on this machine."""
    artifact = store.local_path(row.folder)
    return artifact, artifact if row.base_folder is None else store.local_path(row.base_folder)
