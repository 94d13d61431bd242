"""Which loaded model answers to a name, an id or an alias. It knows no texts and no HTTP.

The database says what a name stands for. What it said is believed for a second and a half, and asked again, for all
names at once, before that is over: so a call rarely waits for it, and what another process deletes or points elsewhere
is heard of within two seconds, the time that asking takes included (decision 0025).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from app.db.tables import ModelRow
from app.errors import UnavailableError
from app.models.repository import Name
from app.models.service import ModelService
from app.periodic import Periodic
from ml.artifact.manifest import DamagedFolderError
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier, WrongAnswersError

log = logging.getLogger(__name__)

MEMORY_SECONDS = 1.5
WATCH_SECONDS = 0.5
# A model that could not be loaded ahead of its callers is tried again after this time.
RETRY_SECONDS = 30.0
# Each reads a whole model and has its session beside those of the cache.
LOADS_AT_ONCE = 4

Preload = Literal["ok", "loading", "missing"]


@dataclass(frozen=True)
class Served:
    """A model as it answers. Who holds it goes on with it, whatever becomes of the name."""

    model_id: str
    classifier: OnnxClassifier


@dataclass(frozen=True)
class Known:
    """What a name stands for, believed until a time of the monotonic clock."""

    model_id: str
    until: float


class ServedModels:
    """Loaded models by project and name."""

    def __init__(self, models: ModelService, cache: ModelCache, preload: Sequence[str] = ()) -> None:
        """preload: ids or aliases, the latter of any project, to load before the first call asks for them."""
        self._models = models
        self._cache = cache
        self._known: dict[Name, Known] = {}
        # Raised by every change made here: what was asked of the database before it counts no more.
        self._changes = 0
        self._lock = threading.Lock()
        self._loaders = ThreadPoolExecutor(LOADS_AT_ONCE, thread_name_prefix="loader")
        self._ahead: dict[str, Future[OnnxClassifier]] = {}  # loads that no caller waits for, by model id
        self._retry_at: dict[str, float] = {}
        self._preload: dict[str, Preload] = dict.fromkeys(preload, "loading")
        self.behind = 0  # names in use whose new model is not loaded yet

    async def find(self, project_id: str, name: str) -> Served:
        """The model that answers to a name. Raises NotFoundError, and UnavailableError where it cannot be served."""
        key = (project_id, name)
        known = self._known.get(key)
        if known and time.monotonic() < known.until and (classifier := self._cache.peek(known.model_id)):
            return Served(known.model_id, classifier)
        changes, asked = self._changes, time.monotonic()
        row = await asyncio.to_thread(self._models.get_row, *key)
        try:
            classifier = await asyncio.wrap_future(self._start(row))
        except Exception as error:
            await asyncio.to_thread(self._explain, row, error)
            raise
        self._remember(key, Known(row.id, asked + MEMORY_SECONDS), changes)
        return Served(row.id, classifier)

    def load(self, project_id: str, name: str) -> str:
        """Load the model that a name stands for, and return its id. Raises as `find` does."""
        row = self._models.get_row(project_id, name)
        try:
            self._start(row).result()
        except Exception as error:
            self._explain(row, error)
            raise
        return row.id

    def forget(self, model_id: str) -> None:
        """Stop answering from a model."""
        with self._lock:
            self._changes += 1
            self._known = {key: known for key, known in self._known.items() if known.model_id != model_id}
        self._cache.drop(model_id)

    def forget_name(self, project_id: str, name: str) -> None:
        """Ask the database again what a name stands for."""
        with self._lock:
            self._changes += 1
            self._known.pop((project_id, name), None)

    def refresh(self) -> None:
        """Ask what all names of loaded models stand for now; load what aliases were pointed at; preload.

        Until an alias's new model is loaded its old one answers, unless it was deleted.
        """
        changes, asked, seen = self._changes, time.monotonic(), self._known.copy()
        held = {key: known.model_id for key, known in seen.items() if known.model_id in self._cache}
        now = self._models.ids_of({*held, *((project, model_id) for (project, _), model_id in held.items())})
        found: dict[Name, Known] = {}
        behind = 0
        for (project, name), model_id in held.items():
            target = now.get((project, name))
            if target is None or (project, model_id) not in now:
                continue
            serving = target if target == model_id or self._load_ahead(project, target) else model_id
            behind += serving != target
            found[project, name] = Known(serving, asked + MEMORY_SECONDS)
        self.behind = behind
        with self._lock:
            for key, known in seen.items():
                if changes == self._changes and self._known.get(key) is known:  # else a call has asked meanwhile
                    del self._known[key]
                    if key in found:
                        self._known[key] = found[key]
        for project, model_id in {(project, model_id) for (project, _), model_id in held.items()} - now.keys():
            log.info("model %s of %s was deleted elsewhere", model_id, project)
            self._cache.drop(model_id)
        for name, state in self._preload.items():
            if state != "ok":
                self._preload[name] = self._preload_one(name)

    @property
    def preload(self) -> Preload:
        """loading until each model to preload was tried; missing where one could not be loaded."""
        states = set(self._preload.values())
        return "loading" if "loading" in states else "missing" if "missing" in states else "ok"

    def close(self) -> None:
        """Begin no more loads."""
        self._loaders.shutdown(wait=False)

    def _start(self, row: ModelRow) -> Future[OnnxClassifier]:
        return self._cache.start(row.id, lambda: self._models.folders(row), self._loaders.submit)

    def _remember(self, key: Name, known: Known, changes: int) -> None:
        with self._lock:
            if changes == self._changes:
                self._known[key] = known

    def _explain(self, row: ModelRow, error: Exception) -> None:
        """Raise what a failed load means to a caller, where that is known."""
        # Its files go when it is deleted, and a load may find any of them gone.
        self._models.get_row(row.project_id, row.id)
        if isinstance(error, WrongAnswersError | DamagedFolderError):
            log.error("model %s cannot be served: %s", row.id, error)
            raise UnavailableError(f"Model '{row.id}' is not served: {error}.", code="model_unfit") from error

    def _load_ahead(self, project_id: str, model_id: str) -> bool:
        """Whether a model is loaded; where it is not, begin to, but not again soon after that failed."""
        if model_id in self._cache:
            self._retry_at.pop(model_id, None)
            self._ahead.pop(model_id, None)
            return True
        begun = self._ahead.get(model_id)
        if begun is None:
            if time.monotonic() >= self._retry_at.get(model_id, 0.0):
                self._ahead[model_id] = self._start(self._models.get_row(project_id, model_id))
        elif begun.done():
            del self._ahead[model_id]
            if (error := begun.exception()) is not None:
                log.error("model %s cannot be loaded: %s", model_id, error)
                self._retry_at[model_id] = time.monotonic() + RETRY_SECONDS
        return False

    def _preload_one(self, name: str) -> Preload:
        changes, asked = self._changes, time.monotonic()
        found = self._models.find_everywhere(name)
        loaded = [self._load_ahead(project_id, model_id) for project_id, model_id in found]
        if found and all(loaded):
            for project_id, model_id in found:
                self._remember((project_id, name), Known(model_id, asked + MEMORY_SECONDS), changes)
            return "ok"
        if not found and self._preload[name] == "loading":
            log.error("MINIMAND_PRELOAD names '%s', and no project has such a model or alias", name)
        return "missing" if not found or any(model_id in self._retry_at for _, model_id in found) else "loading"


class Watch(Periodic):
    """Keeps what is known of the loaded models fresh."""

    def __init__(self, served: ServedModels) -> None:
        super().__init__("watching models", WATCH_SECONDS)
        self._served = served

    def run_once(self) -> None:
        """One round."""
        self._served.refresh()
