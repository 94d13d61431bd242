"""All SQL on datasets. Every query stays in one project."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import DatasetRow
from app.http.metadata import where_metadata
from app.http.pagination import PageRequest, fetch_page


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
    query = select(DatasetRow).where(DatasetRow.project_id == project_id)
    query = where_metadata(session, query, DatasetRow.extra, metadata)
    return fetch_page(session, query, DatasetRow.id, request)
