"""Projects are made by who runs the server: admin keys of the first project, and the command line."""

import time

from sqlalchemy.orm import Session

from app.audit.repository import record
from app.db.session import Database
from app.db.tables import KeyRow, ProjectRow
from app.errors import NotFoundError, PermissionDeniedError
from app.http.idempotency import create_once, idempotency_of
from app.http.pagination import PageRequest
from app.ids import new_id
from app.keys import repository
from app.keys.caller import Caller
from app.keys.service import new_key
from app.projects.schemas import ProjectChange, ProjectRequest


class ProjectService:
    """The rules of projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, caller: Caller, asked: ProjectRequest, idempotency_key: str | None
    ) -> tuple[ProjectRow, KeyRow | None, str | None]:
        """A project, its first key and that key's secret; of a repeat the project that was made alone."""
        _require_operator(caller)
        idempotency = idempotency_of(caller, idempotency_key, {"create": "project", **asked.model_dump()})
        limits = asked.limits.model_dump(exclude_unset=True)
        row = ProjectRow(id=new_id("proj"), name=asked.name, limits=limits, created_at=time.time())
        key, secret = new_key(row.id, "admin", ["admin"])

        def insert(session: Session) -> ProjectRow:
            session.add(row)
            session.flush()
            session.add(key)
            record(session, caller, "project.created", row.id, name=row.name, limits=limits, key=key.id)
            return row

        stored = create_once(self._database, ProjectRow, idempotency, insert)
        return (row, key, secret) if stored is row else (stored, None, None)

    def change(self, caller: Caller, project_id: str, asked: ProjectChange) -> ProjectRow:
        """Another name or other limits; every process hears of them within 2 seconds. Raises NotFoundError."""
        _require_operator(caller)
        with self._database.write() as session:
            row = _found(repository.lock_project(session, project_id), project_id)
            if asked.name is not None:
                row.name = asked.name
            if asked.limits is not None:
                row.limits = asked.limits.model_dump(exclude_unset=True)
            record(session, caller, "project.changed", row.id, name=row.name, limits=row.limits)
            return row

    def get(self, caller: Caller, project_id: str) -> ProjectRow:
        """A project. Raises NotFoundError."""
        _require_operator(caller)
        with self._database.read() as session:
            return _found(repository.find_project(session, project_id), project_id)

    def list_page(self, caller: Caller, page: PageRequest) -> tuple[list[ProjectRow], bool]:
        """One page of all projects."""
        _require_operator(caller)
        with self._database.read() as session:
            return repository.list_projects(session, page)


def _require_operator(caller: Caller) -> None:
    if not caller.is_operator:
        raise PermissionDeniedError(
            "Projects are made and changed by who runs this server: with an admin key of the first project, or "
            "`minimand projects`.",
            code="operator_only",
        )


def _found(row: ProjectRow | None, project_id: str) -> ProjectRow:
    if row is None:
        raise NotFoundError(f"There is no project '{project_id}'.", code="project_not_found")
    return row
