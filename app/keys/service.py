"""Keys: made once, kept as a digest, looked up on each call with a short memory.

A secret is 160 random bits, so its digest needs no salt, and finding it by an index tells a guesser nothing. It knows
no HTTP.
"""

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audit.repository import record
from app.db.session import Database
from app.db.tables import KeyRow, ProjectRow
from app.errors import AuthenticationError, ConflictError, NotFoundError
from app.http.idempotency import create_once, idempotency_of
from app.http.pagination import PageRequest
from app.ids import new_id
from app.keys import repository
from app.keys.caller import FIRST_PROJECT, OPERATOR, Caller
from app.keys.schemas import KeyRequest, RotationRequest
from app.limits.schemas import Limits
from app.periodic import Periodic

# A revoked key stops working everywhere within two seconds: this time, in which a hot path need not ask the database,
# and the time that asking takes.
MEMORY_SECONDS = 1.5
# From then on one call asks for all that have the key, while the others go on as before: else all would ask at once.
_ASK_AGAIN_SECONDS = 1.0
_REMEMBERED_KEYS = 10_000
_NOTE_USES_SECONDS = 60.0

_SECRET = re.compile(r"mk_([0-9a-f]{40})([0-9a-f]{6})")
_HINT_LENGTH = 9


@dataclass
class _Remembered:
    """Whose a secret is; None of a word that is no key, so that one who repeats it costs no query either.

    Times are of the monotonic clock.
    """

    caller: Caller | None
    until: float
    ask_again_at: float


class KeyService:
    """Opens the door, or not."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: dict[str, _Remembered] = {}  # by digest
        self._uses: dict[str, float] = {}
        self._lock = threading.Lock()

    # -------------------------------------------------------------------------------------------------------- the door

    def authenticate(self, secret: str) -> Caller:
        """The caller behind a secret; AuthenticationError when no live key has it."""
        if not is_well_formed(secret):
            raise AuthenticationError(
                "This is no API key: a key is mk_ and 46 hexadecimal digits, the last of which check the others. Copy "
                "it again, whole.",
                code="invalid_api_key",
            )
        digest = _digest(secret)
        asked = time.monotonic()
        known = self._remembered.get(digest)
        if known is None or known.caller or asked >= known.until:
            known = _Remembered(self._look_up(digest), asked + MEMORY_SECONDS, asked + _ASK_AGAIN_SECONDS)
            with self._lock:
                if len(self._remembered) >= _REMEMBERED_KEYS:
                    self._remembered.clear()
                self._remembered[digest] = known
        if known.caller is None:
            raise AuthenticationError(
                "This API key is not known here, has expired, or was revoked. The first key is in the file admin.key "
                "of the home.",
                code="invalid_api_key",
            )
        return known.caller

    def recall(self, secret: str) -> Caller | None:
        """The caller behind a secret that was checked a moment ago, without asking the database; None where that must
        be asked, by `authenticate`.
        """
        known, now = self._remembered.get(_digest(secret)), time.monotonic()
        if known is None or now >= known.until:
            return None
        if now >= known.ask_again_at:
            known.ask_again_at = known.until
            return None
        return known.caller

    def _look_up(self, digest: str) -> Caller | None:
        now = time.time()
        with self._database.read() as session:
            found = repository.find_by_secret(session, digest, now)
        if found is None:
            return None
        key, project = found
        self._uses[key.id] = now
        return Caller(key.id, key.lineage, project.id, frozenset(key.scopes), key.limits, project.limits)

    def note_uses(self) -> None:
        """Write down when keys were last used, as far as this process knows."""
        uses, self._uses = self._uses, {}
        if uses:
            with self._database.write() as session:
                repository.note_uses(session, uses)

    # ------------------------------------------------------------------------------------------------------------ keys

    def create(self, caller: Caller, asked: KeyRequest, idempotency_key: str | None) -> tuple[KeyRow, str | None]:
        """A new key of the caller's project, and its secret; of a repeat the key that was made, and no secret."""
        idempotency = idempotency_of(caller, idempotency_key, {"create": "key", **asked.model_dump()})
        row, secret = new_key(caller.project_id, asked.name, asked.scopes, asked.limits, asked.expires_at())

        def insert(session: Session) -> KeyRow:
            session.add(row)
            record(session, caller, "key.created", row.id, name=row.name, scopes=row.scopes)
            return row

        stored = create_once(self._database, KeyRow, idempotency, insert)
        return stored, secret if stored is row else None

    def get(self, project_id: str, key_id: str) -> KeyRow:
        """A project's key. Raises NotFoundError."""
        with self._database.read() as session:
            return _found(repository.find(session, project_id, key_id), key_id)

    def list_page(self, project_id: str, page: PageRequest) -> tuple[list[KeyRow], bool]:
        """One page of a project's keys."""
        with self._database.read() as session:
            return repository.list_keys(session, project_id, page)

    def rotate(
        self, caller: Caller, key_id: str, asked: RotationRequest, idempotency_key: str | None = None
    ) -> tuple[KeyRow, str | None]:
        """A new key with the name, scopes and limits of this one, which lives on for so long, and its secret; of a
        repeat the key that was made, and no secret. Raises NotFoundError, and ConflictError for a key that lives no
        more or has a successor already, which would end with this one.
        """
        now, overlap_seconds = time.time(), asked.overlap_seconds
        idempotency = idempotency_of(caller, idempotency_key, {"rotate": key_id, **asked.model_dump()})
        made: list[str] = []

        def insert(session: Session) -> KeyRow:
            repository.lock_project(session, caller.project_id)
            old = _found(repository.find(session, caller.project_id, key_id), key_id)
            _require_live(old, now)
            if (successor := repository.find_successor(session, old, now)) is not None:
                raise ConflictError(
                    f"The key '{key_id}' was rotated into '{successor.id}'. Rotate that one, which takes no secret.",
                    code="key_rotated",
                )
            row, secret = new_key(old.project_id, old.name, old.scopes, Limits(**old.limits), old.expires_at)
            row.lineage = old.lineage
            old.expires_at = min(old.expires_at or now + overlap_seconds, now + overlap_seconds)
            session.add(row)
            record(session, caller, "key.rotated", key_id, to=row.id, overlap_seconds=overlap_seconds)
            made.append(secret)
            return row

        stored = create_once(self._database, KeyRow, idempotency, insert)
        self._forget(key_id)
        return stored, made[0] if made else None

    def revoke(self, caller: Caller, key_id: str) -> None:
        """Let a key open nothing from now on; a repeat changes nothing. Raises NotFoundError, and ConflictError for the
        last key that could make another.
        """
        now = time.time()
        with self._database.write() as session:
            repository.lock_project(session, caller.project_id)  # of two that revoke each other, one must stay
            row = _found(repository.find(session, caller.project_id, key_id), key_id)
            if row.revoked_at is not None:
                return
            if (
                "admin" in row.scopes
                and caller.key_id != OPERATOR
                and not repository.has_other_admin(session, row, now)
            ):
                raise ConflictError(
                    f"'{key_id}' is the project's last key with the scope admin: nobody could make another. Make one "
                    "first, or rotate this one.",
                    code="last_admin_key",
                )
            row.revoked_at = now
            record(session, caller, "key.revoked", key_id, name=row.name)
        self._forget(key_id)

    def _forget(self, key_id: str) -> None:
        """Here a change counts at once; other processes hear of it as their memory ends."""
        with self._lock:
            self._remembered = {
                digest: known
                for digest, known in self._remembered.items()
                if known.caller is None or known.caller.key_id != key_id
            }

    # ------------------------------------------------------------------------------------------------------- first key

    def ensure_admin_key(self, path: Path) -> str | None:
        """Make the first project and key, write the secret to `path` (mode 600) and return it; later return None."""
        key, secret = new_key(FIRST_PROJECT, "admin", ["admin"])
        try:
            with self._database.write() as session:
                if repository.find_project(session, FIRST_PROJECT) is not None:
                    return None
                session.add(ProjectRow(id=FIRST_PROJECT, name="default", created_at=key.created_at))
                session.flush()  # of two processes that get here at once, one fails on the id, before any file
                session.add(key)
                session.flush()
                # The file before the commit: a key that nobody can read would lock everyone out.
                _write_private(path, secret + "\n")
        except IntegrityError:
            return None
        return secret


class KeyUses(Periodic):
    """Writes down, now and then, when keys were last used: no call waits for it."""

    def __init__(self, keys: KeyService) -> None:
        super().__init__("noting when keys were used", _NOTE_USES_SECONDS)
        self._keys = keys

    def run_once(self) -> None:
        """One round."""
        self._keys.note_uses()


def new_key(
    project_id: str, name: str, scopes: Sequence[str], limits: Limits | None = None, expires_at: float | None = None
) -> tuple[KeyRow, str]:
    """A key that is not stored yet, and its secret."""
    secret = new_secret()
    key_id = new_id("key")
    row = KeyRow(
        id=key_id,
        lineage=key_id,
        project_id=project_id,
        name=name,
        secret_sha256=_digest(secret),
        hint=secret[:_HINT_LENGTH],
        scopes=list(scopes),
        limits=limits.model_dump(exclude_none=True) if limits else {},
        created_at=time.time(),
        expires_at=expires_at,
    )
    return row, secret


def new_secret() -> str:
    """`mk_`, 160 random bits, and a checksum that lets a scanner tell a key from any other word."""
    body = secrets.token_hex(20)
    return f"mk_{body}{_checksum(body)}"


def is_well_formed(secret: str) -> bool:
    """Whether a word could be a key: its checksum fits."""
    found = _SECRET.fullmatch(secret)
    return found is not None and _checksum(found[1]) == found[2]


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:6]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _found(row: KeyRow | None, key_id: str) -> KeyRow:
    if row is None:
        raise NotFoundError(f"There is no key '{key_id}'.", code="key_not_found")
    return row


def _require_live(row: KeyRow, now: float) -> None:
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
        raise ConflictError(f"The key '{row.id}' lives no more. Make a new one: POST /v1/keys.", code="key_not_live")


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)  # also where the file was there before
        file.write(text)
        file.flush()
        os.fsync(descriptor)
