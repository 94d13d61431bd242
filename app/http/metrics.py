"""What this process counts of its predictions, and GET /metrics, which tells it to Prometheus (decision 0027)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from app.http.auth import Authenticated
from app.http.disconnect import CLIENT_LEFT
from app.http.services import Wired

if TYPE_CHECKING:
    from app.predictions.service import PredictionService
    from ml.inference.cache import ModelCache

# From half of a short text's pass to what no caller waits for.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Lines beside each series, of when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The series of one application. Labels are bound here, so that counting a call takes microseconds."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        calls = Counter(
            "minimand_predictions",
            "Calls for a prediction, by outcome: refused is 429, invalid any other 4xx, failed 5xx.",
            ["outcome"],
            registry=self._registry,
        )
        self._outcomes = {name: calls.labels(name) for name in ("answered", "refused", "invalid", "left", "failed")}
        seconds = Histogram(
            "minimand_prediction_seconds",
            "Time of an answered call, by the stages of its timings_ms.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._seconds = {stage: seconds.labels(stage) for stage in ("queue", "tokenize", "inference")}
        self._rows = Histogram(
            "minimand_pass_texts", "Texts that went through a network together.", buckets=_ROWS, registry=self._registry
        )
        tokens = Counter(
            "minimand_pass_tokens",
            "Tokens that went through networks, by kind: of texts, or padding up to the longest of a pass.",
            ["kind"],
            registry=self._registry,
        )
        self._text_tokens, self._padding = tokens.labels("text"), tokens.labels("padding")

    def watch(self, predictions: "PredictionService", cache: "ModelCache") -> None:
        """Tell of these what is so whenever somebody asks."""
        gauges = (
            ("minimand_texts_waiting", "Texts that wait for their model.", lambda: predictions.waiting),
            ("minimand_models_loaded", "Models in memory.", lambda: len(cache)),
            ("minimand_models_bytes", "About the memory that these models hold.", lambda: cache.bytes),
        )
        for name, meaning, read in gauges:
            Gauge(name, meaning, registry=self._registry).set_function(read)

    def observe_answer(self, timings_ms: Mapping[str, float]) -> None:
        """A call was answered."""
        self._outcomes["answered"].inc()
        for stage, seconds in self._seconds.items():
            seconds.observe(timings_ms[stage] / 1000)

    def observe_failure(self, status: int) -> None:
        """A call was not, and got this status."""
        outcome = {429: "refused", CLIENT_LEFT: "left"}.get(status, "invalid" if status < 500 else "failed")
        self._outcomes[outcome].inc()

    def observe_pass(self, rows: int, tokens: int, padding: int) -> None:
        """See `ml.inference.scheduler.Observer`."""
        self._rows.observe(rows)
        self._text_tokens.inc(tokens)
        self._padding.inc(padding)

    def as_text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="What Prometheus scrapes",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(_caller: Authenticated, services: Wired) -> Response:
    """Of this process alone, since it began: texts waiting, calls by outcome, their time by stage, passes, models."""
    return Response(services.metrics.as_text(), media_type=CONTENT_TYPE_LATEST)
