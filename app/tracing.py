"""Traces by OpenTelemetry: what a request took, or a run of a job, and where. Nothing is recorded unless
MINIMAND_TRACING_URL is set.

FastAPI makes the spans of requests (`telemetry` in `app.main`). Attributes are ids, names and numbers: never a text, a
key, or a body.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AnyValue

from app.logs import log_about

if TYPE_CHECKING:
    from app.db.tables import JobRow
    from app.settings import Settings

_W3C = TraceContextTextMapPropagator()


class TracingUnavailableError(RuntimeError):
    """Traces are asked for, and what sends them is not installed."""


def configure_tracing(settings: "Settings", role: str) -> None:
    """Send this process's spans to the collector that the settings name, if they name one.

    All else is set by OpenTelemetry's own OTEL_* variables, such as OTEL_TRACES_SAMPLER.
    """
    if settings.tracing_url is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailableError(
            "MINIMAND_TRACING_URL is set, and what sends traces is not installed. Install the extra: pip install "
            "'minimand[tracing]'; or unset it."
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "minimand")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "minimand.role": role}))
    exporter = OTLPSpanExporter(endpoint=f"{settings.tracing_url.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def describe_request(request_id: str, *, has_query: bool) -> None:
    """Name the present request in its span, and its trace in the log."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("minimand.request_id", request_id)
    if has_query:
        span.set_attribute("url.query", "REDACTED")  # a filter may hold what a caller wrote
    _log_trace(span)


def describe_route(method: str, route: str) -> None:
    """Name the route of a request that no router saw."""
    span = trace.get_current_span()
    if span.is_recording():
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)


def describe_job(job_id: str) -> None:
    """Name the job that the present request submitted."""
    trace.get_current_span().set_attribute("minimand.job.id", job_id)


def is_tracing() -> bool:
    """Whether the present span is recorded."""
    return trace.get_current_span().is_recording()


def record_stages(stages: Mapping[str, float], *, ended: float, **attributes: AnyValue) -> None:
    """Spans of what was done one after the other, in seconds each, up to `ended` of `time.perf_counter`."""
    trace.get_current_span().set_attributes({f"minimand.{name}": value for name, value in attributes.items()})
    began_ns = time.time_ns() - round((time.perf_counter() - ended + sum(stages.values())) * 1e9)
    for name, seconds in stages.items():
        span = _tracer().start_span(name, start_time=began_ns)
        began_ns += round(seconds * 1e9)
        span.end(began_ns)


def current_traceparent() -> str | None:
    """The present span as the header has it; None where there is none."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def run_span(job: "JobRow") -> Iterator[None]:
    """A run of a job, in the trace of the request that submitted it; and beside it how long the job waited for it."""
    submitted = _W3C.extract({"traceparent": job.traceparent} if job.traceparent else {})
    about: dict[str, AnyValue] = {"minimand.job.id": job.id, "minimand.job.kind": job.kind}
    about["minimand.job.fence"] = job.fence
    waited = _tracer().start_span("wait in queue", submitted, start_time=round(job.queued_at * 1e9), attributes=about)
    waited.end()
    with _tracer().start_as_current_span(
        f"run {job.kind}",
        submitted,
        kind=SpanKind.CONSUMER,
        attributes=about,
        record_exception=False,  # its message may hold anything
        set_status_on_exception=False,
    ) as span:
        if span.is_recording():
            _log_trace(span)
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise


def note_checkpoint(checkpoint_id: str, step: int) -> None:
    """A checkpoint of the present run was stored."""
    trace.get_current_span().add_event("checkpoint", {"minimand.checkpoint.id": checkpoint_id, "minimand.step": step})


def note_outcome(outcome: str) -> None:
    """What became of the present run's job."""
    span = trace.get_current_span()
    span.set_attribute("minimand.job.outcome", outcome)
    if outcome == "failed":
        span.set_status(StatusCode.ERROR)


def _tracer() -> trace.Tracer:
    return trace.get_tracer("minimand")


def _log_trace(span: Span) -> None:
    log_about(trace_id=format_trace_id(span.get_span_context().trace_id))
