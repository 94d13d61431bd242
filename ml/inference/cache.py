"""Loaded models, as many as their bytes allow, the least recently used dropped first.

It knows folders and sessions, not where the folders come from. Loading one model never blocks another.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from ml.artifact.description import INT8, ONNX
from ml.artifact.manifest import verify_folder
from ml.inference.backends import Backend, Engine
from ml.inference.classifier import OnnxClassifier, load_classifier
from ml.inference.cost import PassCost
from ml.inference.shared import Shared

Value = TypeVar("Value")
Parts = Mapping[Hashable, int]

# What a model holds beside its session, its tokenizer and its weights, measured: 8 KB with 2 labels, 16 with 28.
OWN_BYTES = 15_000


class OnceCache(Generic[Value]):
    """A cache bounded by bytes whose values are made once, however many ask at the same time.

    The newest value is kept even where it alone exceeds the bound. What is dropped lives on while somebody uses it.
    """

    def __init__(self, max_bytes: int, parts_of: Callable[[Value], Parts]) -> None:
        """parts_of: what a value holds, with the bytes of each; what several values hold counts once."""
        self._max_bytes = max_bytes
        self._parts_of = parts_of
        self._futures: OrderedDict[Hashable, Future[Value]] = OrderedDict()
        self._parts: dict[Hashable, Parts] = {}  # of the values that are ready, by their keys
        self._holders: Counter[Hashable] = Counter()  # of each part
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Of all that is held."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value under a key, made by the first who asks. A failure is told to all who wait, and not kept."""
        return self.start(key, make, lambda work: work()).result()

    def start(
        self, key: Hashable, make: Callable[[], Value], run: Callable[[Callable[[], None]], object]
    ) -> Future[Value]:
        """The same without waiting: `run` is given the work where there is some, and does it here or in a thread."""
        with self._lock:
            future = self._futures.get(key)
            if is_first := future is None:
                future = self._futures[key] = Future()
                future.set_running_or_notify_cancel()  # who waits may leave; the others still wait
            self._futures.move_to_end(key)
        assert future is not None
        if is_first:
            made = future
            run(lambda: self._make(key, made, make))
        return future

    def peek(self, key: Hashable) -> Value | None:
        """The value under a key, if it is there and ready."""
        with self._lock:
            if key not in self._parts:
                return None
            self._futures.move_to_end(key)
            return self._futures[key].result()

    def __len__(self) -> int:
        """How many values are there and ready."""
        return len(self._parts)

    def __contains__(self, key: Hashable) -> bool:
        """Whether a value is there and ready; asking does not count as use."""
        return key in self._parts

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        with self._lock:
            self._drop(key)

    def _make(self, key: Hashable, future: Future[Value], make: Callable[[], Value]) -> None:
        try:
            value = make()
            parts = self._parts_of(value)
        except BaseException as error:
            with self._lock:
                if self._futures.get(key) is future:
                    self._drop(key)
            future.set_exception(error)
            return
        future.set_result(value)
        with self._lock:
            if self._futures.get(key) is future:  # else it was dropped meanwhile
                self._hold(key, parts)

    def _hold(self, key: Hashable, parts: Parts) -> None:
        self._parts[key] = parts
        self._bytes += sum(size for part, size in parts.items() if not self._holders[part])
        self._holders.update(parts.keys())
        if self._bytes > self._max_bytes:
            oldest_first = [other for other in self._futures if other in self._parts and other != key]
            while oldest_first and self._bytes > self._max_bytes:
                self._drop(oldest_first.pop(0))

    def _drop(self, key: Hashable) -> None:
        self._futures.pop(key, None)
        for part, size in self._parts.pop(key, {}).items():
            self._holders[part] -= 1
            if not self._holders[part]:
                del self._holders[part]
                self._bytes -= size


class ModelCache:
    """Classifiers by model id."""

    def __init__(self, max_bytes: int, engine: Engine) -> None:
        self._models: OnceCache[OnnxClassifier] = OnceCache(max_bytes, self._parts_of)
        self._shared = Shared(engine)
        self._costs: WeakKeyDictionary[Backend, PassCost] = WeakKeyDictionary()

    @property
    def bytes(self) -> int:
        """About the memory that the loaded models hold."""
        return self._models.bytes

    def get(self, model_id: str, folders: Callable[[], tuple[Path, Path]]) -> OnnxClassifier:
        """The classifier of a model. `folders` gives its artifact and its runtime folder when it must be loaded."""
        return self._models.get(model_id, lambda: self._load(*folders()))

    def start(
        self,
        model_id: str,
        folders: Callable[[], tuple[Path, Path]],
        run: Callable[[Callable[[], None]], object],
    ) -> Future[OnnxClassifier]:
        """The same without waiting: `run` is given the work of loading where there is some."""
        return self._models.start(model_id, lambda: self._load(*folders()), run)

    def peek(self, model_id: str) -> OnnxClassifier | None:
        """The classifier of a model, if it is loaded."""
        return self._models.peek(model_id)

    def __len__(self) -> int:
        """How many models are loaded."""
        return len(self._models)

    def __contains__(self, model_id: str) -> bool:
        """Whether a model is loaded; asking does not count as use."""
        return model_id in self._models

    def drop(self, model_id: str) -> None:
        """Forget a model; whoever answers from it just now may finish."""
        self._models.drop(model_id)

    def _load(self, artifact: Path, runtime: Path) -> OnnxClassifier:
        verify_folder(artifact, without=(ONNX, INT8))  # which `Shared` verifies, once
        classifier = load_classifier(artifact, runtime, self._shared)
        session = classifier.session
        # Measured once a session, by the first of its classifiers.
        classifier.cost = self._costs[session] = self._costs.get(session) or classifier.cost
        return classifier

    def _parts_of(self, classifier: OnnxClassifier) -> Parts:
        shared: tuple[Any, Any] = (classifier.session, classifier.tokenizer)
        return {classifier: OWN_BYTES + classifier.own_bytes, **{part: self._shared.bytes_of(part) for part in shared}}
