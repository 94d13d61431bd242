"""All SQL on datasets. Every query stays in one project."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.db.tables import DatasetMetadataRow, DatasetRow
from app.http.metadata import join_metadata
from app.http.pagination import PageRequest, fetch_page_of, id_after


def find(session: Session, project_id: str, dataset_id: str) -> DatasetRow | None:
    """The dataset with this id."""
    return session.scalar(select(DatasetRow).where(DatasetRow.project_id == project_id, DatasetRow.id == dataset_id))


def find_by_file(session: Session, project_id: str, file: str) -> DatasetRow | None:
    """The dataset that a file in the store belongs to."""
    return session.scalar(select(DatasetRow).where(DatasetRow.project_id == project_id, DatasetRow.file == file))


def find_for_update(session: Session, project_id: str, dataset_id: str) -> DatasetRow | None:
    """The same, locked against another transaction that changes or locks it."""
    return session.scalar(
        select(DatasetRow).where(DatasetRow.project_id == project_id, DatasetRow.id == dataset_id).with_for_update()
    )


def list_page(
    session: Session, project_id: str, request: PageRequest, metadata: Mapping[str, str]
) -> tuple[list[DatasetRow], bool]:
    """One page of the project's datasets that have these pairs of metadata, and whether more follow."""
    query: Select[Any] = select(DatasetRow).where(DatasetRow.project_id == project_id)
    query, key = join_metadata(query, DatasetRow, DatasetMetadataRow, metadata, project_id=project_id)
    return fetch_page_of(session, query, DatasetRow, key, request, id_after(request, "ds"))
