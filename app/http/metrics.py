"""What Prometheus is told: what this process counts of its calls (decision 0027), and what the rows say (0031)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.census import Census
from app.errors import PermissionDeniedError, UnavailableError
from app.http.auth import Authenticated, needs
from app.http.disconnect import CLIENT_LEFT
from app.http.services import Wired
from app.jobs.states import ENDED, LIVE

if TYPE_CHECKING:
    from app.http.health import Parts
    from app.predictions.served import ServedModels
    from app.predictions.service import PredictionService
    from ml.inference.cache import ModelCache

# From half of a short text's pass to what no caller waits for.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
# From a row that is read to an upload or a `Prefer: wait`.
_REQUEST_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
# Any word may stand there in a request.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# Lines beside each series, of when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The series of one application. Labels are bound here, so that counting a call takes microseconds."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        Gauge("minimand_build_info", "1, of the version that runs.", ["version"], registry=self._registry).labels(
            version
        ).set(1)
        self._requests = Counter(
            "minimand_http_requests",
            "Requests that were replied to, by the template of their path.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "minimand_http_request_seconds",
            "From a request's head to its reply's; of a stream, to its beginning.",
            ["method", "route"],
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )
        self._bound: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
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

    def watch(self, predictions: "PredictionService", cache: "ModelCache", served: "ServedModels") -> None:
        """Tell of these what is so whenever somebody asks."""
        gauges = (
            ("minimand_texts_waiting", "Texts that wait for their model.", lambda: predictions.waiting),
            ("minimand_texts_waiting_limit", "Texts that may wait.", lambda: predictions.max_waiting_texts),
            ("minimand_models_loaded", "Models in memory.", lambda: len(cache)),
            ("minimand_models_bytes", "About the memory that these models hold.", lambda: cache.bytes),
            (
                "minimand_aliases_behind",
                "Names in use that were pointed at another model, which is not loaded here yet: the old one answers.",
                lambda: served.behind,
            ),
        )
        for name, meaning, read in gauges:
            Gauge(name, meaning, registry=self._registry).set_function(read)

    def watch_parts(self, look: "Callable[[], Parts]") -> None:
        """Tell how the parts of the service are, as /readyz does."""
        self._registry.register(_PartsCollector(look))

    def watch_rows(self, count: Callable[[], Census]) -> None:
        """Tell what the rows of all projects say. count: raises UnavailableError."""
        self._registry.register(_RowsCollector(count))

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was replied to. route: the template of its path."""
        key = (method, route, status)
        if (bound := self._bound.get(key)) is None:
            known = method if method in _METHODS else "other"
            bound = self._requests.labels(known, route, status), self._request_seconds.labels(known, route)
            if known == method:
                self._bound[key] = bound
        bound[0].inc()
        bound[1].observe(seconds)

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


class _PartsCollector(Collector):
    def __init__(self, look: "Callable[[], Parts]") -> None:
        self._look = look

    def describe(self) -> Iterator[Metric]:
        yield from ()  # else what it collects is asked for when it is registered

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "minimand_part_up", "1 where a part of the service is as it should be; see /readyz.", labels=["part"]
        )
        for part, state in self._look().model_dump().items():
            up.add_metric([part], state == "ok" or (part, state) == ("broker", "none"))
        yield up


class _RowsCollector(Collector):
    def __init__(self, count: Callable[[], Census]) -> None:
        self._count = count

    def describe(self) -> Iterator[Metric]:
        yield from ()

    def collect(self) -> Iterator[Metric]:
        with suppress(UnavailableError):  # minimand_part_up says so
            yield from _of_rows(self._count())


def _of_rows(census: Census) -> Iterator[Metric]:
    """The same from every process over one database: take the `max` of several, not their sum."""
    jobs = GaugeMetricFamily("minimand_jobs", "Jobs that have not ended.", labels=["kind", "status"])
    ended = CounterMetricFamily("minimand_jobs_ended", "Jobs that have ended.", labels=["kind", "outcome"])
    for (kind, status), count in census.jobs.items():
        if status in LIVE:
            jobs.add_metric([kind, status], count)
        if status in ENDED:
            ended.add_metric([kind, status], count)
    claims = CounterMetricFamily(
        "minimand_job_claims",
        "Runs of jobs that workers began; those beyond a job's first go on with it.",
        labels=["kind"],
    )
    attempts = CounterMetricFamily(
        "minimand_job_attempts", "Runs that ended badly without a new checkpoint.", labels=["kind"]
    )
    for family, counts in ((claims, census.claims), (attempts, census.attempts)):
        for kind, count in counts.items():
            family.add_metric([kind], count)
    waiting = GaugeMetricFamily("minimand_queue_jobs", "Jobs that wait for a worker.", labels=["queue"])
    oldest = GaugeMetricFamily(
        "minimand_queue_oldest_seconds",
        "How long the job that waits longest has waited; 0 where none does.",
        labels=["queue"],
    )
    for queue, one in census.waiting.items():
        waiting.add_metric([queue], one.jobs)
        oldest.add_metric([queue], one.oldest_seconds)
    workers = GaugeMetricFamily("minimand_workers", "Living workers that claim from a queue.", labels=["queue"])
    for queue, count in census.workers.items():
        workers.add_metric([queue], count)
    stored = GaugeMetricFamily("minimand_stored_bytes", "Bytes in the file store, by what they are.", labels=["what"])
    for what, size in census.stored_bytes.items():
        stored.add_metric([what], size)
    steps = GaugeMetricFamily(
        "minimand_training_step_seconds", "Of a running job's last steps, the mean.", labels=["job"]
    )
    memory = GaugeMetricFamily(
        "minimand_training_memory_bytes",
        "The most that a running job's trainer held of its device.",
        labels=["job", "device"],
    )
    for job_id, progress in census.running.items():
        if "step_seconds" in progress:
            steps.add_metric([job_id], progress["step_seconds"])
            memory.add_metric([job_id, progress["device"]], progress["memory_bytes"])
    yield from (jobs, ended, claims, attempts, waiting, oldest, workers, stored, steps, memory)


router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="What Prometheus scrapes",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    dependencies=[needs("metrics")],
)
def metrics(caller: Authenticated, services: Wired) -> Response:
    """Of this process, since it began: requests, predictions, texts waiting, passes, models, and the parts it needs.

    The API also tells what the rows say: jobs, queues, workers, stored bytes, running trainings. They are of all
    projects together, so a key of the first project is asked for.
    """
    if not caller.is_operator:
        raise PermissionDeniedError(
            "These figures are of all projects together: a key of the first project, with the scope metrics, reads "
            "them.",
            code="operator_only",
        )
    return Response(services.metrics.as_text(), media_type=CONTENT_TYPE_LATEST)
