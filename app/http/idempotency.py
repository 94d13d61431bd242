"""`Idempotency-Key`: a create that is repeated makes nothing new. The key lives in the row it made, in the row's own
transaction, so a crash leaves both or neither.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Header
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import DatasetRow, JobRow, KeyRow, ProjectRow
from app.errors import InvalidInputError
from app.keys.caller import Caller

KEPT_SECONDS = 86_400

Row = TypeVar("Row", DatasetRow, JobRow, KeyRow, ProjectRow)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="A word of your choice, new for each thing you create. A repeat of the request with the same word "
        "returns what the first one made; kept 24 hours.",
    ),
]


@dataclass(frozen=True)
class Idempotency:
    """A request that may be a repeat: the caller's key, and the digest of what was asked."""

    key: str
    request_sha256: str


def idempotency_of(caller: Caller, header: str | None, request: object) -> Idempotency | None:
    """The idempotency of a request, whose content is given as plain JSON values; None when no key was sent."""
    if header is None:
        return None
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return Idempotency(f"{caller.key_id}:{header}", hashlib.sha256(canonical.encode()).hexdigest())


def find_created(session: Session, table: type[Row], idempotency: Idempotency | None) -> Row | None:
    """What an earlier request with this key made; a 422 when that request asked for something else."""
    if idempotency is None:
        return None
    row = session.scalar(
        select(table).where(table.idempotency_key == idempotency.key, table.created_at > time.time() - KEPT_SECONDS)
    )
    if row is not None and row.request_sha256 != idempotency.request_sha256:
        raise InvalidInputError(
            f"This Idempotency-Key already made {row.id}, from another request. Send a new key with a new request.",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return row


def create_once(
    database: Database, table: type[Row], idempotency: Idempotency | None, insert: Callable[[Session], Row]
) -> Row:
    """Insert a row in one transaction, or return the one an earlier request with the same key made.

    `insert` adds the row to the session and returns it, or a row that is there already, which keeps its own key. Of two
    requests in a race, the loser's transaction is undone and it gets the winner's row.
    """
    try:
        with database.write() as session:
            if (earlier := find_created(session, table, idempotency)) is not None:
                return earlier
            _release_expired(session, table, idempotency)
            row = insert(session)
            if idempotency is not None and row.idempotency_key is None:
                row.idempotency_key = idempotency.key
                row.request_sha256 = idempotency.request_sha256
            session.flush()
            return row
    except IntegrityError:
        with database.read() as session:
            if (earlier := find_created(session, table, idempotency)) is None:
                raise
            return earlier


def release_all_expired(session: Session) -> None:
    """Forget the keys that are kept no longer. Nothing else clears one that is never sent again."""
    for table in (DatasetRow, JobRow, KeyRow, ProjectRow):
        is_expired = (table.idempotency_key.is_not(None), table.created_at <= time.time() - KEPT_SECONDS)
        session.execute(update(table).where(*is_expired).values(idempotency_key=None, request_sha256=None))


def _release_expired(session: Session, table: type[Row], idempotency: Idempotency | None) -> None:
    if idempotency is not None:
        session.execute(
            update(table)
            .where(table.idempotency_key == idempotency.key, table.created_at <= time.time() - KEPT_SECONDS)
            .values(idempotency_key=None)
        )
