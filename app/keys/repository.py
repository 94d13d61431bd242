"""All SQL on keys and projects."""

from collections.abc import Mapping, Sequence

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from app.db.tables import KeyRow, ProjectRow
from app.http.pagination import PageRequest, fetch_page, id_after


def find_by_secret(session: Session, secret_sha256: str, now: float) -> tuple[KeyRow, ProjectRow] | None:
    """The live key with this digest, and its project."""
    query = select(KeyRow, ProjectRow).join(ProjectRow, ProjectRow.id == KeyRow.project_id)
    found = session.execute(query.where(KeyRow.secret_sha256 == secret_sha256, *_is_live(now))).first()
    return None if found is None else (found[0], found[1])


def find(session: Session, project_id: str, key_id: str) -> KeyRow | None:
    """A project's key."""
    return session.scalar(select(KeyRow).where(KeyRow.project_id == project_id, KeyRow.id == key_id))


def find_successor(session: Session, row: KeyRow, now: float) -> KeyRow | None:
    """The live key that this one was rotated into, directly or by way of others."""
    later = (KeyRow.lineage == row.lineage, KeyRow.created_at > row.created_at, *_is_live(now))
    return session.scalars(select(KeyRow).where(KeyRow.project_id == row.project_id, *later)).first()


def list_keys(session: Session, project_id: str, page: PageRequest) -> tuple[list[KeyRow], bool]:
    """One page of a project's keys, revoked ones too."""
    return fetch_page(
        session, select(KeyRow).where(KeyRow.project_id == project_id), KeyRow.id, page, id_after(page, "key")
    )


def has_other_admin(session: Session, row: KeyRow, now: float) -> bool:
    """Whether a project has a live key with the scope `admin` beside this one."""
    others = session.scalars(
        select(KeyRow).where(KeyRow.project_id == row.project_id, KeyRow.id != row.id, *_is_live(now))
    )
    return any("admin" in other.scopes for other in others)


def note_uses(session: Session, uses: Mapping[str, float]) -> None:
    """Write down when keys were last used."""
    for key_id, used in uses.items():
        is_later = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at < used)
        session.execute(update(KeyRow).where(KeyRow.id == key_id, is_later).values(last_used_at=used))


def find_project(session: Session, project_id: str) -> ProjectRow | None:
    """A project."""
    return session.get(ProjectRow, project_id)


def lock_project(session: Session, project_id: str) -> ProjectRow | None:
    """A project, locked against another transaction that changes it or counts what it has."""
    return session.scalar(select(ProjectRow).where(ProjectRow.id == project_id).with_for_update())


def find_projects_named(session: Session, name: str) -> Sequence[ProjectRow]:
    """All projects of this name: nothing keeps two from having the same."""
    return session.scalars(select(ProjectRow).where(ProjectRow.name == name).order_by(ProjectRow.created_at)).all()


def list_projects(session: Session, page: PageRequest) -> tuple[list[ProjectRow], bool]:
    """One page of all projects."""
    return fetch_page(session, select(ProjectRow), ProjectRow.id, page, id_after(page, "proj"))


def _is_live(now: float) -> tuple[ColumnElement[bool], ...]:
    return KeyRow.revoked_at.is_(None), func.coalesce(KeyRow.expires_at, now + 1) > now
