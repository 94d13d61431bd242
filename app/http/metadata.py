"""`metadata`: what a caller writes on a thing for themselves, and the filter `metadata[key]=value` on lists.

The service stores it and reads nothing into it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ml.specs.job import Metadata

__all__ = ["Metadata", "MetadataFilter", "where_metadata"]

_PREFIX = "metadata["


def _metadata_filter(request: Request) -> dict[str, str]:
    return {
        name[len(_PREFIX) : -1]: value
        for name, value in request.query_params.items()
        if name.startswith(_PREFIX) and name.endswith("]")
    }


MetadataFilter = Annotated[dict[str, str], Depends(_metadata_filter)]


def where_metadata(
    session: Session, query: Select[Any], column: InstrumentedAttribute[Any], metadata: Mapping[str, str]
) -> Select[Any]:
    """The rows whose metadata hold all these pairs."""
    for key, value in metadata.items():
        if session.get_bind().dialect.name == "sqlite":
            # Not a JSON path, in which SQLite cannot name a key with a quote, a backslash or an escaped letter.
            pair = func.json_each(column).table_valued("key", "value")
            query = query.where(select(1).where(pair.c.key == key, pair.c.value == value).exists())
        else:
            query = query.where(column[key].as_string() == value)
    return query
