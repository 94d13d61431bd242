"""Predictions: find the model, answer on the one thread that runs models, measure. It knows no HTTP."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.errors import InvalidInputError, UnavailableError
from app.ids import new_id
from app.keys.service import Caller
from app.models.service import ModelService
from app.predictions.schemas import MAX_TEXTS, PredictionRequest, TextPair
from ml.artifact.manifest import DamagedFolderError
from ml.artifact.tokenizer import Text
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier, WrongAnswersError

# A row is asked for again after this time, so that a model deleted elsewhere stops answering here.
MEMORY_SECONDS = 2.0


class PredictionService:
    """Answers texts."""

    def __init__(self, models: ModelService, *, cache_size: int, threads: int) -> None:
        self._models = models
        self._cache = ModelCache(cache_size, threads)
        self._known: dict[tuple[str, str], float] = {}
        # onnxruntime uses every core by itself: two passes at once would only contend.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def predict(self, caller: Caller, request: PredictionRequest) -> dict[str, Any]:
        """Answer a request: see `Prediction`."""
        texts = _texts(request.input)
        classifier = await self._find(caller, request.model)
        started = time.perf_counter()
        encodings = await asyncio.to_thread(classifier.tokenize, texts)
        queued = time.perf_counter()

        def answer() -> tuple[float, list[dict[str, Any]], float]:
            begun = time.perf_counter()
            results = classifier.task.decode(classifier.logits(encodings))
            return begun, results, time.perf_counter()

        begun, results, ended = await asyncio.get_running_loop().run_in_executor(self._model_thread, answer)
        return {
            "id": new_id("pred"),
            "object": "prediction",
            "model": request.model,
            "results": results,
            "timings_ms": {
                "queue": round((begun - queued) * 1000, 3),
                "tokenize": round((queued - started) * 1000, 3),
                "inference": round((ended - begun) * 1000, 3),
            },
        }

    def forget(self, model_id: str) -> None:
        """Stop answering from a model."""
        self._cache.drop(model_id)
        for key in list(self._known):
            if key[1] == model_id:
                self._known.pop(key, None)

    def close(self) -> None:
        """Let the running pass end."""
        self._model_thread.shutdown()

    async def _find(self, caller: Caller, model_id: str) -> OnnxClassifier:
        key = (caller.project_id, model_id)
        if time.monotonic() < self._known.get(key, 0.0) and (classifier := self._cache.peek(model_id)):
            return classifier
        return await asyncio.to_thread(self._load, key)

    def _load(self, key: tuple[str, str]) -> OnnxClassifier:
        self._known.pop(key, None)
        row = self._models.get_row(*key)
        try:
            classifier = self._cache.get(row.id, lambda: self._models.folders(row))
        except (WrongAnswersError, DamagedFolderError) as error:
            raise UnavailableError(f"Model '{row.id}' is not served: {error}.", code="model_unfit") from error
        except FileNotFoundError:
            self._models.get_row(*key)  # a 404 when it was deleted while it was being loaded
            raise
        self._known[key] = time.monotonic() + MEMORY_SECONDS
        return classifier


def _texts(given: str | TextPair | Sequence[str | TextPair]) -> list[Text]:
    """Check what came, and lay it out as the tokenizer wants it."""
    is_list = isinstance(given, list)
    items: Sequence[str | TextPair] = given if isinstance(given, list) else [given]  # type: ignore[list-item]
    if not items:
        raise InvalidInputError("'input' is an empty list; send at least one text.", code="no_input", param="/input")
    if len(items) > MAX_TEXTS:
        raise InvalidInputError(
            f"'input' holds {len(items)} texts, and one call takes at most {MAX_TEXTS}. Send several calls.",
            code="too_many_texts",
            param="/input",
        )
    texts: list[Text] = []
    for i, item in enumerate(items):
        pointer = f"/input/{i}" if is_list else "/input"
        parts = (item.text, item.text_pair) if isinstance(item, TextPair) else (item,)
        for part in parts:
            _check_text(part, pointer)
        texts.append(parts if len(parts) == 2 else parts[0])
    return texts


def _check_text(text: str, pointer: str) -> None:
    if not text.strip():
        raise InvalidInputError("a text is empty; there is nothing to classify.", code="empty_text", param=pointer)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidInputError(
            "a text holds half of a surrogate pair, which is no character; send well-formed Unicode.",
            code="invalid_character",
            param=pointer,
        )
