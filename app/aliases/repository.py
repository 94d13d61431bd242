"""All SQL on aliases. Every query stays in one project."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import AliasChangeRow, AliasRow
from app.http.pagination import PageRequest, fetch_page, id_after


def find(session: Session, project_id: str, name: str) -> AliasRow | None:
    """A project's alias."""
    return session.scalar(select(AliasRow).where(AliasRow.project_id == project_id, AliasRow.name == name))


def find_for_update(session: Session, project_id: str, name: str) -> AliasRow | None:
    """The same, locked against another transaction that changes or locks it."""
    return session.scalar(
        select(AliasRow).where(AliasRow.project_id == project_id, AliasRow.name == name).with_for_update()
    )


def names_of(session: Session, model_id: str) -> list[str]:
    """The aliases that stand for a model."""
    return list(session.scalars(select(AliasRow.name).where(AliasRow.model_id == model_id).order_by(AliasRow.name)))


def list_aliases(session: Session, project_id: str, page: PageRequest) -> tuple[list[AliasRow], bool]:
    """One page of a project's aliases."""
    return fetch_page(
        session, select(AliasRow).where(AliasRow.project_id == project_id), AliasRow.id, page, id_after(page, "als")
    )


def list_changes(session: Session, project_id: str, name: str, page: PageRequest) -> tuple[list[AliasChangeRow], bool]:
    """One page of what an alias has stood for."""
    query = select(AliasChangeRow).where(AliasChangeRow.project_id == project_id, AliasChangeRow.name == name)
    return fetch_page(session, query, AliasChangeRow.id, page, id_after(page, "alc"))
