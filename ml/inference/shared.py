"""What loaded models have in common: sessions, tokenizers, and what these make of the probe texts.

A file is checked against its folder's manifest and loaded once, and let go of with the last model that uses it.
It knows no models.
"""

import json
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ml.artifact.manifest import read_manifest, verify_file
from ml.artifact.tokenizer import TOKENIZER, load_tokenizer
from ml.inference.backends import Backend, Engine

Value = TypeVar("Value")
Outputs = NDArray[np.float32]

# Memory over bytes of the file, measured of MiniLM.
TOKENIZER_FACTOR = 15


class WeakCache(Generic[Value]):
    """Values made once, however many ask at the same time, and kept as long as anybody else does."""

    def __init__(self) -> None:
        self._values: WeakValueDictionary[Hashable, Value] = WeakValueDictionary()
        self._making: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value under a key. A failure to make it is told to all who wait."""
        with self._lock:
            if (value := self._values.get(key)) is not None:
                return value
            future = self._making.get(key)
            if is_first := future is None:
                future = self._making[key] = Future()
        assert future is not None
        if is_first:
            try:
                value = make()
            except BaseException as error:
                with self._lock:
                    del self._making[key]
                future.set_exception(error)
            else:
                with self._lock:
                    self._values[key] = value
                    del self._making[key]
                future.set_result(value)
        return future.result()


class Shared:
    """Sessions and tokenizers of published folders."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: WeakCache[Backend] = WeakCache()
        self._tokenizers: WeakCache[Tokenizer] = WeakCache()
        self._bytes: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._probes: WeakKeyDictionary[object, WeakKeyDictionary[object, Outputs]] = WeakKeyDictionary()

    @property
    def reads_int8(self) -> bool:
        """Whether sessions of int8 files may be had."""
        return self._engine.reads_int8

    def session(self, file: Path) -> Backend:
        """The session of an ONNX file. Raises DamagedFolderError."""

        def load() -> Backend:
            verify_file(file.parent, file.name, read_manifest(file.parent))
            session = self._engine.open(file)
            self._bytes[session] = session.bytes
            return session

        return self._sessions.get(file, load)

    def tokenizer(self, folder: Path, max_length: int) -> Tokenizer:
        """See `load_tokenizer`. It may be used by several threads at once. Raises DamagedFolderError."""
        manifest = read_manifest(folder)

        def load() -> Tokenizer:
            verify_file(folder, TOKENIZER, manifest)
            tokenizer = load_tokenizer(folder, max_length)
            self._bytes[tokenizer] = TOKENIZER_FACTOR * (folder / TOKENIZER).stat().st_size
            return tokenizer

        # By content: models that trained their encoders have copies of the same file.
        return self._tokenizers.get((json.dumps(manifest["files"].get(TOKENIZER)), max_length), load)

    def probe(self, session: object, tokenizer: object, answer: Callable[[], Outputs]) -> Outputs:
        """What a session makes of the probe texts, cut by a tokenizer: answered by the first who asks."""
        known = self._probes.setdefault(session, WeakKeyDictionary())
        if (outputs := known.get(tokenizer)) is None:
            outputs = known[tokenizer] = answer()
        return outputs

    def bytes_of(self, part: object) -> int:
        """About the memory that a session or a tokenizer holds."""
        return self._bytes[part]
