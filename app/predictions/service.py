"""Predictions: tokenize, hand the rows to the scheduler, decode its outputs. It knows no HTTP."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from app.errors import InvalidInputError, TooManyRequestsError, UnavailableError
from app.ids import new_id
from app.keys.caller import Caller
from app.predictions.options import optioned
from app.predictions.pipeline import Pipeline
from app.predictions.schemas import MAX_TEXTS, PredictionRequest, TextPair
from app.predictions.served import ServedModels
from app.tracing import is_tracing, record_stages
from ml.artifact.tokenizer import Text
from ml.inference.answers import AnswerCache
from ml.inference.scheduler import Answer, ClosedError, FullError, Observer, Scheduler

# Texts that are together no longer are tokenized in less than a millisecond.
SMALL_CHARACTERS = 2_000


class PredictionService:
    """Answers texts."""

    def __init__(
        self,
        served: ServedModels,
        *,
        passes: int,
        max_waiting_texts: int,
        answer_cache_bytes: int = 0,
        observer: Observer | None = None,
    ) -> None:
        """passes: that run at one time. answer_cache_bytes: 0 for none. observer: of the passes."""
        self.max_waiting_texts = max_waiting_texts
        self._served = served
        self._answers = AnswerCache(answer_cache_bytes) if answer_cache_bytes else None
        self._scheduler = Scheduler(max_waiting_texts, passes, observer)

    @property
    def waiting(self) -> int:
        """Texts that wait for their model."""
        return self._scheduler.waiting

    async def predict(self, caller: Caller, request: PredictionRequest) -> dict[str, Any]:
        """Answer a request: see `Prediction`. Cancelled, it takes back the texts that still wait."""
        texts = _texts(request.input)
        served = await self._served.find(caller.project_id, request.model)
        classifier = served.classifier
        _check_pairs(texts, request, takes_pairs=classifier.description.takes_pairs)
        pipeline = optioned(request, classifier, texts) if request.has_options else Pipeline(classifier)
        # Work of a few microseconds is done here: a thread would cost more than it gives.
        is_small = sum(map(_characters, texts)) <= SMALL_CHARACTERS and not request.explain
        with _refusing():
            self._scheduler.check_room(len(texts))
            begun = time.perf_counter()
            rows = pipeline.tokenize(texts) if is_small else await asyncio.to_thread(pipeline.tokenize, texts)
            looked_up = self._answers.look_up(served.model_id, rows) if self._answers else None
            tokenized = time.perf_counter()
            missing = looked_up.missing if looked_up else rows
            answer: Answer | None = None
            if missing:
                answer = await asyncio.wrap_future(self._scheduler.submit(classifier, missing))

        if is_tracing():
            times = (answer.queue_seconds, answer.pass_seconds) if answer else (0.0, 0.0)
            stages = {"tokenize": tokenized - begun, "queue": times[0], "inference": times[1]}
            record_stages(stages, ended=time.perf_counter(), model=served.model_id, texts=len(texts))

        def decode() -> list[dict[str, Any]]:
            logits = classifier.read(answer.outputs) if answer else None
            if looked_up:
                logits = looked_up.complete(logits)
            assert logits is not None
            return pipeline.decode(logits)

        return {
            "id": new_id("pred"),
            "object": "prediction",
            "model": served.model_id,
            "results": decode() if is_small else await asyncio.to_thread(decode),
            "timings_ms": {
                "queue": round(answer.queue_seconds * 1000, 3) if answer else 0.0,
                "tokenize": round((tokenized - begun) * 1000, 3),
                "inference": round(answer.pass_seconds * 1000, 3) if answer else 0.0,
                **({"cached": looked_up.cached} if looked_up else {}),
            },
        }

    def close(self) -> None:
        """Let the running pass end, and refuse what waits."""
        self._scheduler.close()


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


@contextmanager
def _refusing() -> Iterator[None]:
    """What the scheduler doesn't take, in a caller's terms."""
    try:
        yield
    except FullError as error:
        raise TooManyRequestsError(
            f"{error.waiting} texts wait for their model, and at most {error.limit} may. Send this again later.",
            code="too_many_waiting",
            # What came now would wait as long as the first in line has, at least.
            retry_after=max(1, math.ceil(error.waited)),
        ) from error
    except ClosedError as error:
        raise UnavailableError("The server is shutting down.", code="shutting_down", retry_after=1) from error


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


def _check_pairs(texts: Sequence[Text], request: PredictionRequest, *, takes_pairs: bool) -> None:
    """A model that never saw a pair would answer one with noise, and the reverse."""
    other = next((i for i, text in enumerate(texts) if isinstance(text, str) == takes_pairs), None)
    if other is None:
        return
    message = (
        'a single text came, and this model was trained on pairs; send {"text": …, "text_pair": …}.'
        if takes_pairs
        else "a pair came, and this model was trained on single texts; send one text."
    )
    pointer = f"/input/{other}" if isinstance(request.input, list) else "/input"
    raise InvalidInputError(message, code="pair_expected" if takes_pairs else "single_text_expected", param=pointer)


def _check_text(text: str, pointer: str) -> None:
    if not text.strip():
        raise InvalidInputError("a text is empty; there is nothing to classify.", code="empty_text", param=pointer)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            "a text holds half of a surrogate pair, which is no character; send well-formed Unicode.",
            code="invalid_character",
            param=pointer,
        ) from None
