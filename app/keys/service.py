"""Keys: made once, kept as a digest, looked up on each call with a short memory.

It knows no HTTP.
"""

import hashlib
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from app.db.session import Database
from app.db.tables import KeyRow, ProjectRow
from app.errors import AuthenticationError
from app.ids import new_id
from app.keys import repository

# A revoked key stops working everywhere within this time; until then a hot path need not ask the database.
MEMORY_SECONDS = 2.0
_REMEMBERED_KEYS = 10_000

FIRST_PROJECT = "proj_default"


@dataclass(frozen=True)
class Caller:
    """Who is calling."""

    key_id: str
    project_id: str


class KeyService:
    """Opens the door, or not."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: dict[str, tuple[float, Caller]] = {}
        self._lock = threading.Lock()

    def authenticate(self, secret: str) -> Caller:
        """The caller behind a secret; AuthenticationError when no live key has it."""
        if caller := self.recall(secret):
            return caller
        digest, asked = _digest(secret), time.monotonic()
        with self._database.read() as session:
            row = repository.find_by_secret(session, digest)
        if row is None:
            raise AuthenticationError(
                "This API key is not known here, or was revoked. The first key is in the file admin.key of the home.",
                code="invalid_api_key",
            )
        caller = Caller(row.id, row.project_id)
        with self._lock:
            if len(self._remembered) >= _REMEMBERED_KEYS:
                self._remembered.clear()
            self._remembered[digest] = (asked + MEMORY_SECONDS, caller)
        return caller

    def recall(self, secret: str) -> Caller | None:
        """The caller behind a secret that was checked a moment ago, without asking the database."""
        until, caller = self._remembered.get(_digest(secret), (0.0, None))
        return caller if time.monotonic() < until else None

    def ensure_admin_key(self, path: Path) -> str | None:
        """Make the first project and key, write the secret to `path` (mode 600) and return it; later return None."""
        secret, now = new_secret(), time.time()
        key = KeyRow(
            id=new_id("key"),
            project_id=FIRST_PROJECT,
            name="admin",
            secret_sha256=_digest(secret),
            created_at=now,
            revoked_at=None,
        )
        try:
            with self._database.write() as session:
                if repository.find_project(session, FIRST_PROJECT) is not None:
                    return None
                session.add(ProjectRow(id=FIRST_PROJECT, name="default", created_at=now))
                session.flush()  # of two processes that get here at once, one fails on the id, before any file
                session.add(key)
                session.flush()
                # The file before the commit: a key that nobody can read would lock everyone out.
                _write_private(path, secret + "\n")
        except IntegrityError:
            return None
        return secret


def new_secret() -> str:
    """`mk_`, 160 random bits, and a checksum that lets a scanner tell a key from any other word."""
    body = secrets.token_hex(20)
    return f"mk_{body}{hashlib.sha256(body.encode()).hexdigest()[:6]}"


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # also where the file was there before
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
