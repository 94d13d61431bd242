"""`metadata`: what a caller writes on a thing for themselves, and the filter `metadata[key]=value` on lists.

The service stores it and reads nothing into it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from app.db.tables import DatasetMetadataRow, DatasetRow, JobMetadataRow, JobRow, ModelMetadataRow, ModelRow
from ml.specs.errors import refuse
from ml.specs.job import MAX_PAIRS, Metadata

__all__ = ["METADATA_PARAMETER", "Metadata", "MetadataFilter", "join_metadata"]

_PREFIX = "metadata["


def _metadata_filter(request: Request) -> dict[str, str]:
    if "metadata" in request.query_params:
        raise refuse("metadata", "'metadata' names no key. Filter by metadata[key]=value.")
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        is_pair = name.startswith(_PREFIX) and name.endswith("]")
        if is_pair and wanted.setdefault(name[len(_PREFIX) : -1], value) != value:
            raise refuse(name, f"'{name}' is given twice, and a thing has one value under a key. Send one.")
    if len(wanted) > MAX_PAIRS:  # each is a join
        raise refuse("metadata", f"{len(wanted)} pairs are given, and a thing has at most {MAX_PAIRS}. Send fewer.")
    return wanted


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


Things = type[DatasetRow] | type[JobRow] | type[ModelRow]
Pairs = type[DatasetMetadataRow] | type[JobMetadataRow] | type[ModelMetadataRow]


def join_metadata(
    query: Select[Any], row: Things, pairs: Pairs, metadata: Mapping[str, str], **scope: str
) -> tuple[Select[Any], InstrumentedAttribute[str]]:
    """The rows whose metadata hold all these pairs, and the id to page by: it is in the order of the pairs' index.

    scope: columns that the pairs and their rows share.
    """
    key = row.id
    for name, value in metadata.items():
        pair = aliased(pairs)
        same = {**scope, "key": name, "value": value}
        query = query.join(pair, pair.id == row.id)
        query = query.where(*(getattr(pair, column) == wanted for column, wanted in same.items()))
        key = pair.id
    return query, key
