"""All SQL on what counts against limits."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.tables import DatasetRow, ModelRow, ProjectRow


def lock_project(session: Session, project_id: str) -> None:
    """Wait for other transactions that count what this project has, and keep later ones waiting."""
    session.execute(select(ProjectRow.id).where(ProjectRow.id == project_id).with_for_update())


def stored_bytes(session: Session, project_id: str) -> int:
    """Of a project's datasets and models."""
    sizes = (
        session.scalar(select(func.coalesce(func.sum(table.bytes), 0)).where(table.project_id == project_id))
        for table in (DatasetRow, ModelRow)
    )
    return sum(int(size or 0) for size in sizes)
