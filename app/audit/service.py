"""What the audit tells. Changes are recorded where they are made: see `app.audit.repository.record`."""

from collections.abc import Mapping

from app.audit import repository
from app.db.session import Database
from app.db.tables import AuditRow
from app.http.pagination import PageRequest


class AuditService:
    """Reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_page(self, project_id: str, page: PageRequest, filters: Mapping[str, str]) -> tuple[list[AuditRow], bool]:
        """One page of a project's changes."""
        with self._database.read() as session:
            return repository.list_page(session, project_id, page, filters)
