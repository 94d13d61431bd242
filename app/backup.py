"""Backup and restore: every row, and every file that a row names, in one folder that verifies.

It knows rows and files, and no HTTP. The folder appears whole or not at all:

    rows/TABLE.jsonl   one row a line, as JSON: what SQLite wrote PostgreSQL reads, and the other way round
    files/KEY          as in the store
    manifest.json      last: bytes and sha256 of each of them, and the schema's revision
"""

import json
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Insert, Table, bindparam, insert, select
from sqlalchemy.orm import Session

from app.db.migrate import current_revision, head_revision, upgrade
from app.db.session import Database
from app.db.tables import Base, CheckpointRow, DatasetRow, JobRow, ModelRow, WorkerRow
from app.jobs import repository as jobs
from app.jobs.repository import Why
from app.retention import FOLDERS
from app.storage import FileStore
from ml.artifact.manifest import (
    DamagedFolderError,
    file_sha256,
    folder_bytes,
    publish_folder,
    read_manifest,
    verify_folder,
)

FORMAT = 1
# Which workers were there says nothing of where the rows will be.
TABLES = [table for table in Base.metadata.sorted_tables if table.name != WorkerRow.__tablename__]
RESTORED = Why("restored", "it was restored from a backup")
_TRIES = 5
_ROWS_AT_ONCE = 1000


class BackupError(RuntimeError):
    """A backup that cannot be made or restored: it says why, and what to do."""


@dataclass(frozen=True)
class Summary:
    """What is in a backup."""

    rows: dict[str, int]  # by table
    bytes: int
    unsound: list[str]  # what the store had lost or damaged, and so isn't in it as it should be


def back_up(database: Database, store: FileStore, target: Path) -> Summary:
    """Write a backup to a folder that isn't there yet. The service may run meanwhile. Raises BackupError."""
    if target.exists():
        raise BackupError(f"{target} is there already. Name a folder that isn't.")
    facts: dict[str, Any] = {"format": FORMAT, "schema": head_revision(), "created_at": time.time()}
    with publish_folder(target, "backup", facts) as folder:
        folder.chmod(0o700)
        facts |= _fill(folder, database, store)
    return _summarise(read_manifest(target))


def restore(database: Database, store: FileStore, source: Path, *, max_attempts: int) -> tuple[Summary, int]:
    """Bring a backup into an empty database and an empty store; also say how many jobs were running and wait again.

    All of it is verified before anything is written. Raises BackupError.
    """
    manifest = _verify(source)
    _refuse_used(database, store)
    upgrade(database.engine.url.render_as_string(hide_password=False))
    # Rows are committed last, so none names a file that isn't there; a fault before that leaves nothing.
    with database.write() as session:
        for table in TABLES:
            _read_rows(session, table, source)
        requeued = jobs.release_all(session, cap=max_attempts, why=RESTORED, now=database.now)
        try:
            for name in manifest["files"]:
                if name.startswith("files/"):
                    store.put_file(source / name, name.removeprefix("files/"))
        except BaseException:
            for folder in FOLDERS:
                store.discard(folder)
            raise
    return _summarise(manifest), len(requeued)


def _fill(folder: Path, database: Database, store: FileStore) -> dict[str, Any]:
    """Rows, then their files. A file that was deleted in between is named no more by the next look at the rows."""
    copies = FileStore(str(folder.resolve() / "files"), folder)
    faults: dict[str, str | None] = {}  # of each key that was copied, what is wrong with it
    for _ in range(_TRIES):
        before = dict(faults)
        counts, named = _write_rows(folder / "rows", database)
        for key in faults.keys() - named.keys():
            copies.delete(key)
            del faults[key]
        for key, sha256 in named.items():
            if faults.get(key, "not copied yet") is not None:
                faults[key] = _copy(store, key, folder / "files", sha256)
        unsound = [f"{key}: {fault}" for key, fault in sorted(faults.items()) if fault is not None]
        if not unsound or faults == before:
            return {"rows": counts, "unsound": unsound}
    raise BackupError(f"Files went as fast as they were copied, {_TRIES} times. Try again. One of them: {unsound[0]}.")


def _write_rows(folder: Path, database: Database) -> tuple[dict[str, int], dict[str, str | None]]:
    """Every row, as all were at one moment. Returns how many there are, and the keys they name, as `_named` does."""
    folder.mkdir(exist_ok=True)
    counts = {}
    with database.snapshot() as session:
        for table in TABLES:
            counts[table.name] = 0
            rows = session.execute(select(table), execution_options={"yield_per": _ROWS_AT_ONCE})
            with (folder / f"{table.name}.jsonl").open("w") as file:
                for row in rows:
                    file.write(json.dumps(row._asdict()) + "\n")
                    counts[table.name] += 1
        return counts, _named(session)


def _named(session: Session) -> dict[str, str | None]:
    """The keys that rows name: of folders, and of files with their sha256. What may go soonest comes first."""
    folders = (CheckpointRow.folder, JobRow.output, ModelRow.folder, ModelRow.base_folder)
    keys = {key: None for column in folders for key in session.scalars(select(column)) if key is not None}
    return {**keys, **{row.file: row.sha256 for row in session.execute(select(DatasetRow.file, DatasetRow.sha256))}}


def _copy(store: FileStore, key: str, folder: Path, sha256: str | None) -> str | None:
    """Copy what is stored under a key; returns what is wrong with it, if anything is."""
    try:
        for file in store.files(key):
            copy = folder / file.key
            copy.parent.mkdir(parents=True, exist_ok=True)
            with copy.open("wb") as target:
                target.writelines(store.stream(file.key))
        if sha256 is None:
            verify_folder(folder / key)
        elif file_sha256(folder / key) != sha256:
            return "it is not what was stored"
    except FileNotFoundError:
        return "it is missing"
    except DamagedFolderError as error:
        return str(error)
    return None


def _verify(source: Path) -> dict[str, Any]:
    try:
        manifest = verify_folder(source)
    except DamagedFolderError as error:
        raise BackupError(f"The backup cannot be trusted: {error}.") from error
    if manifest.get("format") != FORMAT:
        raise BackupError(f"{source} is no backup that this version of Minimand reads.")
    if manifest["schema"] != head_revision():
        raise BackupError(
            f"The backup's schema is {manifest['schema']}, and this version of Minimand has {head_revision()}. Restore "
            "it with the version that made it, then run `minimand migrate` with this one."
        )
    return manifest


def _refuse_used(database: Database, store: FileStore) -> None:
    """A restored installation must be the backup and nothing else."""
    revision = current_revision(database)
    with database.read() as session:
        holds_rows = revision is not None and (
            revision != head_revision() or any(session.execute(select(table).limit(1)).first() for table in TABLES)
        )
    if holds_rows:
        raise BackupError("The database is in use. Restore into an empty one, before `minimand migrate` or `up`.")
    if any(True for folder in FOLDERS for _ in store.files(folder)):
        raise BackupError("The file store holds files. Restore into an empty one.")


def _read_rows(session: Session, table: Table, source: Path) -> None:
    with (source / "rows" / f"{table.name}.jsonl").open() as file:
        rows = map(json.loads, file)
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            session.execute(_insert(table), some)


def _insert(table: Table) -> Insert:
    # An empty JSON column is NULL, not the JSON value null.
    json_or_null = JSON(none_as_null=True)
    types = {one.name: json_or_null if isinstance(one.type, JSON) else one.type for one in table.columns}
    return insert(table).values({name: bindparam(name, type_=type_) for name, type_ in types.items()})


def _summarise(manifest: dict[str, Any]) -> Summary:
    return Summary(manifest["rows"], folder_bytes(manifest), manifest["unsound"])
