"""Folders that are whole or not there: every file is hashed and flushed, the manifest goes last, then one rename.

The same for checkpoints and artifacts. It knows files, not what is in them.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml.crash_points import crash_point

MANIFEST = "manifest.json"


class DamagedFolderError(Exception):
    """A folder that does not verify: it names the file and what is wrong with it."""


class DiskFullError(OSError):
    """A folder that could not be written because there was no room."""


def is_disk_full(error: BaseException) -> bool:
    """Whether something could not be written because there was no room."""
    # safetensors has an error of its own, and only its words say what the kernel said.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)


@contextmanager
def publish_folder(target: Path, kind: str, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Give the block an empty folder to fill; then hash, flush, rename to `target`, and read it all back.

    `kind`, what the folder is, and `facts` go into the manifest. When the block fails nothing is left behind. Raises
    DiskFullError where there is no room for it.
    """
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        crash_point(f"{kind}.after_files")
        files = {path.relative_to(temporary).as_posix(): _describe(path, flush=True) for path in _files(temporary)}
        manifest = temporary / MANIFEST
        content = {"kind": kind, **facts, "files": files}
        manifest.write_text(json.dumps({**content, "sha256": _digest(content)}, indent=1, sort_keys=True))
        flush(manifest)
        flush(temporary)
        crash_point(f"{kind}.after_manifest")
        temporary.rename(target)
        crash_point(f"{kind}.after_rename")
        flush(target.parent)
        verify_folder(target)
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(errno.ENOSPC, f"there is no room on the disk for {kind} {target.name}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder; DamagedFolderError when there is none to read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise DamagedFolderError(f"{folder.name}/{MANIFEST} is not a manifest")
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        if manifest.get("sha256") != _digest(content):
            raise DamagedFolderError(f"{folder.name}/{MANIFEST} is not what was written")
    except (OSError, ValueError) as error:
        raise DamagedFolderError(f"{folder.name} has no readable {MANIFEST}: {error}") from error
    return manifest


def verify_folder(folder: Path, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Check every file of a published folder against its manifest, and return the manifest.

    without: files that whoever calls can do without, and checks by `verify_file` before it reads them.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        if name not in without:
            verify_file(folder, name, manifest)
    return manifest


def verify_file(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Check one file against its folder's manifest."""
    expected = manifest["files"].get(name)
    try:
        found = _describe(folder / name, flush=False)
    except OSError as error:
        raise DamagedFolderError(f"{folder.name}/{name} cannot be read: {error}") from error
    if found != expected:
        raise DamagedFolderError(f"{folder.name}/{name} is not what was written: {found} instead of {expected}")


def folder_bytes(manifest: dict[str, Any]) -> int:
    """Bytes of all files in a manifest."""
    return sum(file["bytes"] for file in manifest["files"].values())


def manifest_sha256(folder: Path) -> str:
    """The digest of a folder's manifest, and so of all that is in the folder."""
    return file_sha256(folder / MANIFEST)


def file_sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_verified(folder: Path, refused: Callable[[str], None]) -> Path | None:
    """The published folder with the highest step that verifies. `refused` hears of each one that does not."""
    candidates: list[tuple[int, Path]] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        try:
            candidates.append((int(read_manifest(path)["step"]), path))
        except (DamagedFolderError, KeyError, ValueError) as error:
            refused(str(error))
    for _, path in sorted(candidates, reverse=True):
        try:
            verify_folder(path)
        except DamagedFolderError as error:
            refused(str(error))
        else:
            return path
    return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _describe(path: Path, *, flush: bool) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest}


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
