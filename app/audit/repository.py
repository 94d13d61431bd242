"""All SQL on the audit."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import AuditRow
from app.http.pagination import PageRequest, fetch_page, id_after
from app.ids import new_id
from app.keys.caller import Caller


def record(session: Session, caller: Caller, action: str, target: str, **data: Any) -> None:
    """Note a change, in its own transaction. data: plain JSON, without secrets and without texts."""
    session.add(
        AuditRow(
            id=new_id("aud"),
            project_id=caller.project_id,
            key_id=caller.key_id,
            action=action,
            target=target,
            data=data,
            created_at=time.time(),
        )
    )


def list_page(
    session: Session, project_id: str, page: PageRequest, filters: Mapping[str, str]
) -> tuple[list[AuditRow], bool]:
    """One page of a project's changes. filters: values by column."""
    query = select(AuditRow).where(AuditRow.project_id == project_id)
    for column, value in filters.items():
        query = query.where(getattr(AuditRow, column) == value)
    return fetch_page(session, query, AuditRow.id, page, id_after(page, "aud"))
