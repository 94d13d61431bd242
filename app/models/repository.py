"""All SQL on models."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from app.db.tables import ModelRow
from app.http.metadata import where_metadata
from app.http.pagination import PageRequest, fetch_page


def find(session: Session, project_id: str, model_id: str) -> ModelRow | None:
    """A project's model."""
    return session.scalar(select(ModelRow).where(ModelRow.id == model_id, ModelRow.project_id == project_id))


def list_models(
    session: Session, project_id: str, page: PageRequest, metadata: Mapping[str, str]
) -> tuple[list[ModelRow], bool]:
    """One page of a project's models."""
    query: Select[Any] = select(ModelRow).where(ModelRow.project_id == project_id)
    return fetch_page(session, where_metadata(session, query, ModelRow.extra, metadata), ModelRow.id, page)


def delete_model(session: Session, model_id: str) -> None:
    """Forget a model."""
    session.execute(delete(ModelRow).where(ModelRow.id == model_id))
