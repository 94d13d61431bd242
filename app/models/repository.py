"""All SQL on models."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session

from app.db.tables import AliasRow, ModelMetadataRow, ModelRow
from app.http.metadata import join_metadata
from app.http.pagination import PageRequest, fetch_page_of, id_after

ID_PREFIX = "mdl_"  # by which an id is told from an alias
_NAMES_AT_ONCE = 500

Name = tuple[str, str]  # a project's id, and a model's id or an alias


def resolve(session: Session, project_id: str, name: str) -> ModelRow | None:
    """A project's model, by its id or an alias."""
    if name.startswith(ID_PREFIX):
        return find(session, project_id, name)
    is_named = (AliasRow.project_id == project_id, AliasRow.name == name)
    return session.scalar(select(ModelRow).join(AliasRow, AliasRow.model_id == ModelRow.id).where(*is_named))


def ids_of(session: Session, names: Collection[Name]) -> dict[Name, str]:
    """The ids of the models that names stand for; names that stand for none are left out."""
    found: dict[Name, str] = {}
    distinct = {name for _, name in names}
    ids = [name for name in distinct if name.startswith(ID_PREFIX)]
    aliases = list(distinct.difference(ids))
    for start in range(0, len(ids), _NAMES_AT_ONCE):
        query = select(ModelRow.project_id, ModelRow.id).where(ModelRow.id.in_(ids[start : start + _NAMES_AT_ONCE]))
        found |= {(project_id, model_id): model_id for project_id, model_id in session.execute(query)}
    for start in range(0, len(aliases), _NAMES_AT_ONCE):
        some = aliases[start : start + _NAMES_AT_ONCE]
        named = select(AliasRow.project_id, AliasRow.name, AliasRow.model_id).where(AliasRow.name.in_(some))
        found |= {(project_id, name): model_id for project_id, name, model_id in session.execute(named)}
    return {name: found[name] for name in names if name in found}


def find_everywhere(session: Session, name: str) -> list[tuple[str, str]]:
    """The project and the id of every model with this id or alias, in whatever project."""
    if name.startswith(ID_PREFIX):
        query = select(ModelRow.project_id, ModelRow.id).where(ModelRow.id == name)
    else:
        query = select(AliasRow.project_id, AliasRow.model_id).where(AliasRow.name == name)
    return [(project_id, model_id) for project_id, model_id in session.execute(query)]


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
    query, key = join_metadata(query, ModelRow, ModelMetadataRow, metadata, project_id=project_id)
    return fetch_page_of(session, query, ModelRow, key, page, id_after(page, "mdl"))
