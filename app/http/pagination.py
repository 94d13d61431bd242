"""Lists: a cursor is the id of the last item seen, so rows that come and go neither repeat nor hide others."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select, UnaryExpression, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.tables import DatasetRow, JobRow, ModelRow
from app.errors import InvalidInputError
from app.http.path_ids import id_pattern

Item = TypeVar("Item", bound=BaseModel)
Row = TypeVar("Row", DatasetRow, JobRow, ModelRow)
Order = Literal["asc", "desc"]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


class PageRequest(BaseModel):
    """What part of a list is asked for."""

    after: str | None = None
    limit: int = 20
    order: Order = "desc"

    def page(self, items: list[Any], *, has_more: bool) -> dict[str, Any]:
        """Wrap items that were already cut to the limit."""
        ids = [item.id if hasattr(item, "id") else item["id"] for item in items]
        return {
            "object": "list",
            "data": items,
            "has_more": has_more,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
        }


def _page_request(default: Order, told: str = "asc: oldest first; desc: newest first.", default_limit: int = 20) -> Any:
    def read(
        after: Annotated[str | None, Query(description="Continue after the item with this id.")] = None,
        limit: Annotated[int, Query(ge=1, le=100, description="Items a page.")] = default_limit,
        order: Annotated[Order, Query(description=told)] = default,
    ) -> PageRequest:
        return PageRequest(after=after, limit=limit, order=order)

    return Depends(read)


NewestFirst = Annotated[PageRequest, _page_request("desc")]
OldestFirst = Annotated[PageRequest, _page_request("asc")]
# Of a catalogue, which changes with the service alone: by default it comes whole.
InItsOrder = Annotated[PageRequest, _page_request("asc", "asc: in its own order; desc: from its end.", 100)]


def page_of(items: Sequence[Any], request: PageRequest) -> dict[str, Any]:
    """One page of a list that is all here. Raises InvalidInputError for a cursor that is no item's id."""
    ordered = list(items if request.order == "asc" else reversed(items))
    start = 0
    if request.after is not None:
        ids = [item.id for item in ordered]
        if request.after not in ids:
            raise InvalidInputError(
                f"'after' is '{request.after}', and must be the id of an item of this list.",
                code="invalid_cursor",
                param="after",
            )
        start = ids.index(request.after) + 1
    end = start + request.limit
    return request.page(ordered[start:end], has_more=end < len(ordered))


def id_after(request: PageRequest, prefix: str) -> str | None:
    """The cursor of a list of ids with this prefix; its item may be gone. Raises InvalidInputError."""
    if request.after is not None and not re.fullmatch(id_pattern(prefix), request.after):
        raise InvalidInputError(
            f"'after' is '{request.after}', and must be the id of an item of this list, as is 'last_id' of a page: "
            f"{prefix}_…",
            code="invalid_cursor",
            param="after",
        )
    return request.after


def fetch_page(
    session: Session, query: Select[Any], key: InstrumentedAttribute[Any], request: PageRequest, after: Any
) -> tuple[list[Any], bool]:
    """Run a query over rows ordered by a time-sortable key.

    after: the cursor, in the key's own type. Returns the rows and whether more follow.
    """
    if after is not None:
        query = query.where(key > after if request.order == "asc" else key < after)
    rows = list(session.scalars(query.order_by(_ordered(key, request)).limit(request.limit + 1)))
    return rows[: request.limit], len(rows) > request.limit


def fetch_page_of(
    session: Session,
    query: Select[Any],
    row: type[Row],
    key: InstrumentedAttribute[str],
    request: PageRequest,
    after: str | None,
) -> tuple[list[Row], bool]:
    """The same of a large table. key: its id, or that of an index table that is joined.

    The ids come first, from an index that holds all that the query asks. For whole rows PostgreSQL walks the table in
    the order of its ids where many rows seem to fit, and walks long where the newest ones don't.
    """
    ids, has_more = fetch_page(session, query.with_only_columns(key), key, request, after)
    rows = session.scalars(select(row).where(row.id.in_(ids)).order_by(_ordered(row.id, request)))
    return list(rows), has_more


def _ordered(key: InstrumentedAttribute[Any], request: PageRequest) -> UnaryExpression[Any]:
    return key.asc() if request.order == "asc" else key.desc()
