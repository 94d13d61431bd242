"""Files, by key, in a folder or an object store (fsspec). It knows bytes and folders, and no resource.

A file appears whole or not at all: it is written under another name, flushed to disk and then renamed. In a folder
that is published, `manifest.json` goes last, so a folder without one was never finished.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import fsspec

from ml.artifact.manifest import MANIFEST, flush
from ml.crash_points import crash_point

CHUNK_BYTES = 1 << 20
PROBE_EVERY_SECONDS = 5.0
PROBE_PATIENCE_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredFile:
    """A file in the store."""

    key: str
    bytes: int
    changed_at: float  # unix seconds, by the store's clock


class FileStore:
    """Files under one root."""

    def __init__(self, url: str, cache: Path) -> None:
        # A remembered listing would show what another process has deleted, and hide what it stored.
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._root = root.rstrip("/")
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._cache = cache
        self._prober = ThreadPoolExecutor(1, thread_name_prefix="storage-probe")
        self._probe: Future[None] | None = None
        self._probed_at = 0.0

    def is_writable(self) -> bool:
        """Whether a file can be written within two seconds; looked at every five at most.

        One look at a time, in a thread of its own: a store that hangs must not take those who ask with it.
        """
        now = time.monotonic()
        if self._probe is None or (self._probe.done() and now - self._probed_at > PROBE_EVERY_SECONDS):
            self._probe, self._probed_at = self._prober.submit(self._write_probe), now
        try:
            self._probe.result(PROBE_PATIENCE_SECONDS)
        except Exception:  # each kind of store has errors of its own
            return False
        return True

    def _write_probe(self) -> None:
        if self._is_local:
            Path(self._root).mkdir(parents=True, exist_ok=True)
        self._fs.pipe_file(self._path(".probe"), b"")

    def put_file(self, source: Path, key: str) -> None:
        """Copy a local file into the store, atomically and durably."""
        path = self._path(key)
        if not self._is_local:
            self._fs.put_file(str(source), path)
            return
        target = Path(path)
        made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{uuid4().hex}")
        try:
            shutil.copyfile(source, temporary)
            flush(temporary)
            crash_point("store.before_rename")
            temporary.replace(target)
            for folder in {target.parent, *(folder.parent for folder in made)}:
                flush(folder)
        finally:
            temporary.unlink(missing_ok=True)

    def put_folder(self, source: Path, key: str) -> None:
        """Copy a local folder into the store, its manifest last."""
        files = sorted(p for p in source.rglob("*") if p.is_file())
        for path in sorted(files, key=lambda p: p == source / MANIFEST):
            if path == source / MANIFEST:
                crash_point("store.before_manifest")
            self.put_file(path, f"{key}/{path.relative_to(source).as_posix()}")

    def local_path(self, key: str) -> Path:
        """Where a file or a published folder can be read on this machine, fetched first if the store is remote.

        What is stored under a key never changes, so a fetched copy stays good.
        """
        path = self._path(key)
        if self._is_local:
            if not Path(path).exists():
                raise FileNotFoundError(key)
            return Path(path)
        target = self._cache / key
        if not target.exists():
            if not self._fs.exists(path):
                raise FileNotFoundError(key)
            temporary = target.with_name(f".tmp-{uuid4().hex}")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get(path, str(temporary), recursive=self._fs.isdir(path))
            try:
                temporary.replace(target)
            except OSError:  # another process fetched the same folder meanwhile
                shutil.rmtree(temporary, ignore_errors=True)
        return target

    def stream(self, key: str) -> Iterator[bytes]:
        """Read a file in pieces."""
        with self._fs.open(self._path(key), "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece

    def exists(self, key: str) -> bool:
        """Whether a file or folder is there."""
        return bool(self._fs.exists(self._path(key)))

    def children(self, key: str) -> list[str]:
        """The keys of what lies directly in a folder; none where there is no such folder."""
        path = self._path(key)
        names = self._fs.ls(path, detail=False) if self._fs.exists(path) else []
        return sorted(f"{key}/{name.rstrip('/').rpartition('/')[2]}" for name in names)

    def files(self, key: str) -> Iterator[StoredFile]:
        """Every file at or below a key, in no order; none where there is nothing."""
        path = self._path(key)
        if not self._is_local:
            for name, info in self._fs.find(path, detail=True).items():
                with suppress(FileNotFoundError):  # gone since it was listed
                    changed_at = info.get("LastModified") or self._fs.modified(name)
                    yield StoredFile(self._key(name), info["size"], changed_at.timestamp())
            return
        names = [path] if Path(path).is_file() else [f"{at}/{name}" for at, _, names in os.walk(path) for name in names]
        for name in names:
            with suppress(FileNotFoundError):  # gone, or renamed to what it was to be, since it was listed
                status = Path(name).stat()
                yield StoredFile(self._key(name), status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        """Remove a file or a folder; one that isn't there is no error.

        A manifest goes first, so that what is left when this is cut short is not taken for a whole folder.
        """
        path = self._path(key)
        for doomed in (f"{path}/{MANIFEST}", path):
            with suppress(FileNotFoundError):  # another process may be removing the same
                if self._fs.exists(doomed):
                    self._fs.rm(doomed, recursive=True)
        if not self._is_local:
            cached = self._cache / key
            shutil.rmtree(cached, ignore_errors=True)
            if cached.is_file():
                cached.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Remove what no row names any more. Where that fails it is told, and left to the sweep."""
        try:
            self.delete(key)
        except OSError as error:
            log.warning("%s could not be removed and is left to the sweep: %s", key, error)

    def remove_empty_folders(self, key: str, *, before: float) -> None:
        """Remove the folders below a key that hold nothing and last changed before a time; object stores have none."""
        if self._is_local:
            for at, _, _ in os.walk(self._path(key), topdown=False):
                with suppress(OSError):  # it is not empty, or gone
                    if at != self._path(key) and Path(at).stat().st_mtime < before:
                        Path(at).rmdir()

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    def _path(self, key: str) -> str:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a storage key: {key!r}")
        return f"{self._root}/{key}"
