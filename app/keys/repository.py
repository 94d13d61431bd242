"""All SQL on keys and projects."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import KeyRow, ProjectRow


def find_by_secret(session: Session, secret_sha256: str) -> KeyRow | None:
    """The live key with this digest."""
    return session.scalar(select(KeyRow).where(KeyRow.secret_sha256 == secret_sha256, KeyRow.revoked_at.is_(None)))


def find_project(session: Session, project_id: str) -> ProjectRow | None:
    """A project."""
    return session.get(ProjectRow, project_id)
