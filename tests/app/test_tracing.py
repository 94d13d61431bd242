"""A request is a span, a run joins the trace of the request that submitted its job, and no text stands in either."""

import itertools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app import tracing
from app.jobs import repository
from app.logs import JsonFormatter
from app.settings import Settings
from tests.app.predictions.house import House
from tests.service import submit, tickets, tiny_spec, upload
from workers.runner import Runner
from workers.spares import Spares

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """What was recorded by this file's tests. A provider can be set but once in a process, and is taken back here."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        yield exporter
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def trace_of(span: ReadableSpan) -> str:
    return trace.format_trace_id(span.context.trace_id)


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return trace.format_span_id(span.parent.span_id)


def test_a_request_is_a_span_of_its_callers_trace(house: House, spans: InMemorySpanExporter) -> None:
    house.client.get("/v1/jobs/job_0?metadata[secret]=canary", headers={**CALLER, "x-request-id": "mine"})
    span = named(spans)["GET /v1/jobs/{job_id}"]
    assert (trace_of(span), parent_of(span)) == (TRACE, PARENT)
    assert span.attributes["http.route"] == "/v1/jobs/{job_id}"
    assert span.attributes["http.response.status_code"] == 404
    assert span.attributes["minimand.request_id"] == "mine"
    assert "canary" not in span.to_json()


def test_a_prediction_tells_its_stages_in_order_and_none_of_its_text(house: House, spans: InMemorySpanExporter) -> None:
    for _ in range(2):  # the second by the short way, as its key was checked a moment ago
        house.predict("where is my canary")
    request = named(spans)["POST /v1/predictions"]
    assert request.attributes["minimand.model"] == house.model
    assert (request.attributes["minimand.texts"], request.attributes["http.route"]) == (1, "/v1/predictions")
    stages = [named(spans)[name] for name in ("tokenize", "queue", "inference")]
    assert {trace_of(stage) for stage in stages} == {trace_of(request)}
    for before, after in itertools.pairwise(stages):
        assert before.end_time == after.start_time
    assert request.start_time <= stages[0].start_time
    assert stages[-1].end_time <= request.end_time
    assert sum(name == "tokenize" for name in (span.name for span in spans.get_finished_spans())) == 2
    assert "canary" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_a_run_joins_the_trace_of_its_submission_with_its_wait_and_its_checkpoints(
    house: House, spans: InMemorySpanExporter
) -> None:
    spec = tiny_spec(upload(house.client, tickets(60)), max_steps=4, checkpoint_every_seconds=0)
    job = submit(house.client, spec, **CALLER)
    request = named(spans)["POST /v1/jobs"]
    assert request.attributes["minimand.job.id"] == job
    spans.clear()
    house._run_queued_job()
    run, wait = named(spans)["run training"], named(spans)["wait in queue"]
    for span in (run, wait):
        assert (trace_of(span), span.attributes["minimand.job.id"]) == (TRACE, job)
        assert parent_of(span) == trace.format_span_id(request.context.span_id)
    assert (run.attributes["minimand.job.fence"], run.attributes["minimand.job.outcome"]) == (1, "succeeded")
    assert [event.name for event in run.events] == ["checkpoint"] * len(run.events)
    assert run.events[-1].attributes["minimand.step"] == 4
    assert request.start_time < wait.start_time < wait.end_time <= run.start_time


def test_a_run_that_fails_says_so_and_its_log_names_the_trace(
    house: House, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = submit(house.client, tiny_spec(upload(house.client, tickets(30))), **CALLER)
    with house.database.write() as session:
        claim = repository.claim_next(
            session, queues=("cpu",), kinds=("training",), owner="w", lease=600, now=house.database.now
        )
    assert claim is not None
    assert claim.job_id == job
    lines: list[str] = []

    def fail(*_: object) -> None:
        record = logging.makeLogRecord({"msg": "on the way"})
        lines.append(JsonFormatter().format(record))
        raise RuntimeError("a canary of ours")

    monkeypatch.setattr("workers.runner._Run.prepare", fail)
    stopping = threading.Event()
    stopping.set()  # nobody waits before a job is given back
    runner = Runner(
        house.database, house.services.models._store, house.settings, Spares([], house.settings.home, nice=0)
    )
    copy_context().run(runner.run, claim, {}, stopping)
    run = named(spans)["run training"]
    assert run.attributes["error.type"] == "RuntimeError"
    assert not run.status.is_ok
    assert "canary" not in run.to_json()
    assert json.loads(lines[0])["trace_id"] == TRACE
    house.client.post(f"/v1/jobs/{job}/cancel")


def test_without_a_trace_nothing_is_kept_of_one() -> None:
    assert not tracing.is_tracing()
    assert tracing.current_traceparent() is None


def test_off_it_loads_no_part_of_what_sends_traces() -> None:
    code = (
        "import sys, app.main, workers.__main__; from app.settings import Settings; from app.tracing import *;"
        "configure_tracing(Settings(), 'api');"
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_collector_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", found.append)
    tracing.configure_tracing(Settings(tracing_url="http://127.0.0.1:4318/"), "worker")
    (provider,) = found
    assert (provider.resource.attributes["service.name"], provider.resource.attributes["minimand.role"]) == (
        "minimand",
        "worker",
    )
    exporter = provider._active_span_processor._span_processors[0].span_exporter
    assert exporter._endpoint == "http://127.0.0.1:4318/v1/traces"
    provider.shutdown()


def test_where_what_sends_traces_is_not_installed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(tracing.TracingUnavailableError, match=r"pip install 'minimand\[tracing\]'"):
        tracing.configure_tracing(Settings(tracing_url="http://127.0.0.1:4318"), "api")
