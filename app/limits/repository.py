"""All SQL on what counts against limits."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.tables import DatasetRow, JobRow, ModelRow, ProjectRow
from app.jobs.states import LIVE


def lock_project(session: Session, project_id: str) -> None:
    """Wait for other transactions that count what this project has, and keep later ones waiting."""
    session.execute(select(ProjectRow.id).where(ProjectRow.id == project_id).with_for_update())


def live_jobs(session: Session, project_id: str, lineage: str | None) -> int:
    """How many jobs have not ended, of a project or of a lineage of its keys."""
    query = select(func.count()).select_from(JobRow).where(JobRow.project_id == project_id, JobRow.status.in_(LIVE))
    return session.scalar(query if lineage is None else query.where(JobRow.key_lineage == lineage)) or 0


def stored_bytes(session: Session, project_id: str, lineage: str | None) -> int:
    """Of the datasets and models of a project, or of a lineage of its keys."""
    total = 0
    for table in (DatasetRow, ModelRow):
        query = select(func.coalesce(func.sum(table.bytes), 0)).where(table.project_id == project_id)
        total += int(session.scalar(query if lineage is None else query.where(table.key_lineage == lineage)) or 0)
    return total
