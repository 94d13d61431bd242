"""`metadata`: what a caller writes on a thing for themselves, and the filter `metadata[key]=value` on lists.

The service stores it and reads nothing into it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ml.specs.errors import refuse
from ml.specs.job import Metadata

__all__ = ["METADATA_PARAMETER", "Metadata", "MetadataFilter", "where_metadata"]

_PREFIX = "metadata["


def _metadata_filter(request: Request) -> dict[str, str]:
    if "metadata" in request.query_params:
        raise refuse("metadata", "'metadata' names no key. Filter by metadata[key]=value.")
    return {
        name[len(_PREFIX) : -1]: value
        for name, value in request.query_params.items()
        if name.startswith(_PREFIX) and name.endswith("]")
    }


# What the document says of it: the framework sees no parameter whose name is open.
METADATA_PARAMETER = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object"},  # all between the outer brackets is the key, further brackets too
    "description": "`metadata[key]=value`: only what has this pair; several must all be there.",
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
