"""Arrays that are costly to compute, kept on disk under what they were computed from, and memory-mapped.

It knows arrays and keys, not what is in them. Whatever is wrong with an entry or with the folder, the arrays are
computed instead: a cache is never why a run fails.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.artifact.manifest import DamagedFolderError, publish_folder, verify_folder

Arrays = Mapping[str, NDArray[Any]]

_DESCRIBED = "arrays.json"
_UNFINISHED = ".making-"


class ArrayCache:
    """Arrays by key. Several processes may share its folder.

    folder: where they are kept for later runs; None: nowhere. max_bytes: of all entries; the least recently used go
    first. scratch: a folder of this run alone, for arrays that cannot be kept. `warn` hears why they cannot.
    """

    def __init__(self, folder: Path | None, max_bytes: int, scratch: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._scratch = scratch
        self._warn = warn

    def may_hold(self, size: int) -> bool:
        """Whether arrays of so many bytes in all can be kept for later runs."""
        return self._folder is not None and size <= self._max_bytes

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[], Iterable[Arrays]]) -> Arrays:
        """The arrays under a key: found, or made piece by piece along the first axis, and kept.

        kind: a word for people. key: JSON values, all that the arrays depend on.
        """
        found = self.find(kind, key)
        if found is not None:
            return found
        if self._folder is not None:
            try:
                return self._make_and_keep(self._folder, kind, key, make)
            except OSError as error:
                self._warn(f"{kind} cannot be kept for later runs: {error}")
        with TemporaryDirectory(prefix=_UNFINISHED, dir=self._scratch) as folder:
            _write(Path(folder), make())
            return _open(Path(folder))  # what is mapped can be read when its name is gone

    def find(self, kind: str, key: Mapping[str, Any]) -> Arrays | None:
        """The arrays that are kept under a key, if they are what was written."""
        if self._folder is None:
            return None
        entry = self._folder / _name(kind, key)
        try:
            if not entry.exists():
                return None
            if verify_folder(entry).get("key") != key:
                raise DamagedFolderError(f"{entry.name} is kept under another key")
            arrays = _open(entry)
        except (DamagedFolderError, OSError) as error:
            self._warn(f"{kind} that were kept cannot be used: {error}")
            shutil.rmtree(entry, ignore_errors=True)
            return None
        with suppress(OSError):  # it was used just now; a folder that is only read has no need to know
            os.utime(entry)
        return arrays

    def _make_and_keep(
        self, folder: Path, kind: str, key: Mapping[str, Any], make: Callable[[], Iterable[Arrays]]
    ) -> Arrays:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with _held(folder, is_patient=True):  # no one sweeps between the two lines
                unfinished = Path(stack.enter_context(TemporaryDirectory(prefix=_UNFINISHED, dir=folder)))
                stack.enter_context(_held(unfinished))
            entry = unfinished / "entry"
            with publish_folder(entry, "cache", {"key": dict(key)}) as temporary:
                _write(temporary, make())
            arrays = _open(entry)
            with suppress(OSError):  # another run was quicker; ours are as good, if only for us
                entry.rename(folder / _name(kind, key))
        with _held(folder, is_patient=True):
            self._make_room(folder)
        return arrays

    def _make_room(self, folder: Path) -> None:
        """Remove the least recently used entries until all are within the limit, and what killed runs left."""
        entries: list[tuple[float, int, Path]] = []
        for path in folder.iterdir():
            with suppress(OSError):  # another process is at it
                if path.name.startswith(_UNFINISHED):
                    with _held(path):
                        shutil.rmtree(path)
                else:
                    size = sum(file.stat().st_size for file in path.iterdir())
                    entries.append((path.stat().st_mtime, size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                return
            with suppress(OSError), TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as going:
                path.rename(Path(going) / "entry")  # at once, so that nobody finds half of it
            total -= size


def _name(kind: str, key: Mapping[str, Any]) -> str:
    return f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}"


@contextmanager
def _held(folder: Path, *, is_patient: bool = False) -> Iterator[None]:
    """Lock a folder for as long as this process works in it; where another one does, wait or BlockingIOError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _write(folder: Path, pieces: Iterable[Arrays]) -> None:
    """Append the pieces of each array to a file of its own: never more than one piece is in memory."""
    described: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for piece in pieces:
            for name, array in piece.items():
                if name not in files:
                    files[name] = stack.enter_context((folder / name).open("wb"))
                    described[name] = {"type": array.dtype.str, "shape": [0, *array.shape[1:]]}
                files[name].write(np.ascontiguousarray(array).data)
                described[name]["shape"][0] += len(array)
    (folder / _DESCRIBED).write_text(json.dumps(described))


def _open(folder: Path) -> Arrays:
    described = json.loads((folder / _DESCRIBED).read_bytes())
    return {name: _map(folder / name, tuple(one["shape"]), one["type"]) for name, one in described.items()}


def _map(file: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    if 0 in shape:  # an empty file cannot be mapped
        return np.zeros(shape, kind)
    mapped = np.memmap(file, dtype=kind, mode="r", shape=shape)
    return mapped.view(np.ndarray)  # the subclass makes every access dearer
