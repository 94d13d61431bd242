"""Loaded models, as many as fit, the least recently used dropped first; encoders shared between heads.

It knows folders and sessions, not where the folders come from. Loading one model never blocks another.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from ml.artifact.description import INT8
from ml.artifact.manifest import verify_folder
from ml.inference.backends import Backend, OnnxBackend
from ml.inference.classifier import OnnxClassifier, load_classifier
from ml.inference.cost import PassCost

Value = TypeVar("Value")


class OnceCache(Generic[Value]):
    """A bounded cache whose values are made once, however many ask at the same time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._futures: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value under a key, made by the first who asks. A failure is told to all who wait, and not kept."""
        with self._lock:
            future = self._futures.get(key)
            if is_first := future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
            while len(self._futures) > self._size:
                self._futures.popitem(last=False)
        assert future is not None
        if is_first:
            try:
                future.set_result(make())
            except BaseException as error:
                self.drop(key)
                future.set_exception(error)
        return future.result()

    def peek(self, key: Hashable) -> Value | None:
        """The value under a key, if it is there and ready."""
        with self._lock:
            future = self._futures.get(key)
            if future is None or not future.done() or future.exception() is not None:
                return None
            self._futures.move_to_end(key)
            return future.result()

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        with self._lock:
            self._futures.pop(key, None)


class ModelCache:
    """Classifiers by model id."""

    def __init__(self, size: int, threads: int) -> None:
        self._threads = threads
        self._models: OnceCache[OnnxClassifier] = OnceCache(size)
        # An encoder lives as long as a model that uses it.
        self._sessions: WeakValueDictionary[Path, Backend] = WeakValueDictionary()
        self._costs: WeakKeyDictionary[Backend, PassCost] = WeakKeyDictionary()
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # one a file: loads don't queue up

    def get(self, model_id: str, folders: Callable[[], tuple[Path, Path]]) -> OnnxClassifier:
        """The classifier of a model. `folders` gives its artifact and its runtime folder when it must be loaded."""

        def load() -> OnnxClassifier:
            artifact, runtime = folders()
            for folder in {artifact, runtime}:
                verify_folder(folder, without=(INT8,))
            classifier = load_classifier(artifact, runtime, self._session)
            session = classifier.session
            # Measured once a session, by the first of its classifiers.
            classifier.cost = self._costs[session] = self._costs.get(session) or classifier.cost
            return classifier

        return self._models.get(model_id, load)

    def peek(self, model_id: str) -> OnnxClassifier | None:
        """The classifier of a model, if it is loaded."""
        return self._models.peek(model_id)

    def drop(self, model_id: str) -> None:
        """Forget a model; whoever answers from it just now may finish."""
        self._models.drop(model_id)

    def _session(self, file: Path) -> Backend:
        with self._locks[file]:
            session = self._sessions.get(file)
            if session is None:
                session = OnnxBackend(file, self._threads)
                self._sessions[file] = session
            return session
