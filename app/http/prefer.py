"""`Prefer` (RFC 7240): what a client would like, and may not get. What is unknown or malformed is ignored, by that RFC.

It knows no route.
"""

import re
from typing import Annotated

from fastapi import Header

MOST_WAIT_SECONDS = 60

Prefer = Annotated[
    list[str] | None,
    Header(
        alias="Prefer",
        description=f"`wait=N`: answer once the work has ended, or after N seconds (1 to {MOST_WAIT_SECONDS}).",
        examples=[["wait=30"]],
    ),
]

# A preference is token [= word] and parameters, which are of no use here.
_WAIT = re.compile(r'\s*wait\s*=\s*(?P<quote>"?)(?P<seconds>[0-9]{1,9})(?P=quote)\s*(;.*)?', re.IGNORECASE)


def wait_seconds(prefer: list[str] | None) -> int | None:
    """How long a client would wait for an end, at most MOST_WAIT_SECONDS; None where it would not. The first counts."""
    for preference in ",".join(prefer or ()).split(","):
        if (found := _WAIT.fullmatch(preference)) and (seconds := int(found["seconds"])) > 0:
            return min(seconds, MOST_WAIT_SECONDS)
    return None
