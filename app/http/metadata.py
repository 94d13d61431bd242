"""`metadata`: what a caller writes on a thing for themselves, and the filter `metadata[key]=value` on lists.

The service stores it and reads nothing into it.
"""

from typing import Annotated

from fastapi import Depends, Request

from ml.specs.job import Metadata

__all__ = ["Metadata", "MetadataFilter"]

_PREFIX = "metadata["


def _metadata_filter(request: Request) -> dict[str, str]:
    return {
        name[len(_PREFIX) : -1]: value
        for name, value in request.query_params.items()
        if name.startswith(_PREFIX) and name.endswith("]")
    }


MetadataFilter = Annotated[dict[str, str], Depends(_metadata_filter)]
