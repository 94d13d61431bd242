"""All SQL on models."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session

from app.db.tables import ModelRow
from app.http.metadata import where_metadata
from app.http.pagination import PageRequest, fetch_page


def find(session: Session, project_id: str, model_id: str) -> ModelRow | None:
    """A project's model."""
    return session.scalar(select(ModelRow).where(ModelRow.id == model_id, ModelRow.project_id == project_id))


def find_for_update(session: Session, project_id: str, model_id: str) -> ModelRow | None:
    """The same, locked against another transaction that deletes or locks it."""
    return session.scalar(
        select(ModelRow).where(ModelRow.id == model_id, ModelRow.project_id == project_id).with_for_update()
    )


def is_base_named(session: Session, base_folder: str) -> bool:
    """Whether a model of any project stands on a shared encoder. Until this transaction ends none is published."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has but one writer
        session.execute(text("LOCK TABLE models IN SHARE MODE"))
    return session.scalar(select(ModelRow.id).where(ModelRow.base_folder == base_folder).limit(1)) is not None


def list_models(
    session: Session, project_id: str, page: PageRequest, metadata: Mapping[str, str]
) -> tuple[list[ModelRow], bool]:
    """One page of a project's models."""
    query: Select[Any] = select(ModelRow).where(ModelRow.project_id == project_id)
    return fetch_page(session, where_metadata(session, query, ModelRow.extra, metadata), ModelRow.id, page)
