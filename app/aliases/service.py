"""Aliases: a name comes to stand for a model once this process has loaded that, and every change is kept."""

import re
import time

from sqlalchemy.exc import IntegrityError

from app.aliases import repository
from app.audit.repository import record
from app.base_models.service import BaseModelService
from app.db.session import Database
from app.db.tables import AliasChangeRow, AliasRow
from app.errors import InvalidInputError, NotFoundError
from app.http.pagination import PageRequest
from app.ids import new_id
from app.keys.caller import Caller
from app.models import repository as models
from app.models.service import ModelService, not_found
from app.predictions.served import ServedModels

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LIKE_AN_ID = re.compile(r"mdl_.*|[a-z]+_[0-9a-f]{32}")


class AliasService:
    """The rules of aliases."""

    def __init__(
        self, database: Database, models: ModelService, base_models: BaseModelService, served: ServedModels
    ) -> None:
        self._database = database
        self._models = models
        self._base_models = base_models
        self._served = served

    def put(self, caller: Caller, name: str, model: str) -> tuple[AliasRow, bool]:
        """Let an alias stand for a model, and say whether it is new. The model is loaded first.

        Raises InvalidInputError for the name, NotFoundError for the model, and UnavailableError where it cannot be
        served: then the alias stands for what it stood for.
        """
        self._check_name(name)
        model_id = self._served.load(caller.project_id, model)
        try:
            row, is_new = self._put(caller, name, model_id)
        except IntegrityError:  # another call made the same alias in this moment
            row, is_new = self._put(caller, name, model_id)
        self._served.forget_name(caller.project_id, name)
        return row, is_new

    def delete(self, caller: Caller, name: str) -> None:
        """Let an alias stand for nothing. Raises NotFoundError."""
        with self._database.write() as session:
            row = repository.find_for_update(session, caller.project_id, name)
            if row is None:
                raise _no_alias(name)
            session.delete(row)
            session.add(_change(caller, name, None))
            record(session, caller, "alias.deleted", name)
        self._served.forget_name(caller.project_id, name)

    def get(self, project_id: str, name: str) -> AliasRow:
        """A project's alias. Raises NotFoundError."""
        with self._database.read() as session:
            row = repository.find(session, project_id, name)
        if row is None:
            raise _no_alias(name)
        return row

    def list_page(self, project_id: str, page: PageRequest) -> tuple[list[AliasRow], bool]:
        """One page of a project's aliases."""
        with self._database.read() as session:
            return repository.list_aliases(session, project_id, page)

    def history(self, project_id: str, name: str, page: PageRequest) -> tuple[list[AliasChangeRow], bool]:
        """One page of what an alias has stood for, also one that was deleted. NotFoundError where it never was."""
        with self._database.read() as session:
            if not repository.list_changes(session, project_id, name, PageRequest(limit=1))[0]:
                raise _no_alias(name)
            return repository.list_changes(session, project_id, name, page)

    def _put(self, caller: Caller, name: str, model_id: str) -> tuple[AliasRow, bool]:
        with self._database.write() as session:
            if models.find_for_update(session, caller.project_id, model_id) is None:
                raise not_found(model_id)
            row = repository.find_for_update(session, caller.project_id, name)
            if row is not None and row.model_id == model_id:
                return row, False
            is_new, change = row is None, _change(caller, name, model_id)
            if row is None:
                row = AliasRow(id=new_id("als"), project_id=caller.project_id, name=name, created_at=change.created_at)
            row.model_id, row.changed_at = model_id, change.created_at
            session.add_all((row, change))
            record(session, caller, "alias.changed", name, model=model_id)
        return row, is_new

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            wrong = "a name is 1 to 63 lower-case letters, digits, '.', '_' and '-', the first a letter or digit"
        elif _LIKE_AN_ID.fullmatch(name):
            wrong = "it looks like an id; an alias must not be taken for one"
        elif name in self._base_models:
            wrong = "it is the name of a base model, which a job's 'model' may be as well"
        else:
            return
        raise InvalidInputError(f"'{name}' cannot be an alias: {wrong}.", code="invalid_alias", param="name")


def _change(caller: Caller, name: str, model_id: str | None) -> AliasChangeRow:
    return AliasChangeRow(
        id=new_id("alc"),
        project_id=caller.project_id,
        name=name,
        model_id=model_id,
        key_id=caller.key_id,
        created_at=time.time(),
    )


def _no_alias(name: str) -> NotFoundError:
    return NotFoundError(f"There is no alias '{name}'.", code="alias_not_found")
