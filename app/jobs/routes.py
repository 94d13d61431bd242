"""/v1/jobs."""

import asyncio
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from app.db.tables import JobRow
from app.http.auth import Authenticated, authenticate_request, needs
from app.http.examples import JOBS
from app.http.idempotency import IdempotencyKey
from app.http.metadata import METADATA_PARAMETER, MetadataFilter
from app.http.pagination import NewestFirst, OldestFirst, Page
from app.http.prefer import Prefer, wait_seconds
from app.http.services import Services, Wired
from app.jobs.schemas import CheckpointBody, EventBody, JobBody, JobValidation, MetricBody
from app.jobs.service import parse_event_id
from app.jobs.states import ENDED, ShownStatus
from app.jobs.stream import EventStream
from ml.specs.job import JobKind, JobSpec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[needs("jobs")])

LOOK_EVERY_SECONDS = 0.2


@router.post("", status_code=201, summary="Submit a training job")
def create_job(
    spec: Annotated[JobSpec, Body(openapi_examples=JOBS)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    """Check a spec against its dataset and queue it.

    Only `dataset` is required. The reply holds the resolved spec: every default filled in. A spec that cannot work is
    refused with 422 before anything is queued, with a JSON pointer to what is wrong and how to mend it.
    """
    row = services.jobs.submit(caller, spec, idempotency_key, kind="training")
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return JobBody.of(row)


@router.post("/validate", summary="Check a job spec")
def validate_job(
    spec: Annotated[JobSpec, Body(openapi_examples=JOBS)], caller: Authenticated, services: Wired
) -> JobValidation:
    """What a spec would become: defaults filled in, weights by label, warnings, a rough estimate. Queues nothing."""
    return services.jobs.validate(caller, spec)


@router.post(
    "/dry_run",
    status_code=201,
    summary="Try a job spec on a few batches",
    responses={200: {"model": JobBody, "description": "It ended within the time of `Prefer: wait`."}},
)
async def dry_run_job(
    spec: Annotated[JobSpec, Body(openapi_examples=JOBS)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> JobBody:
    """Make the first few steps of a job without learning from them, and report in the job's `result`.

    Each term's value, its gradient, the share of each label in it, and warnings: a dead term, one that dominates, NaN,
    no positives. It is a short job of its own kind that does not wait behind trainings; with `Prefer: wait=30` the
    reply comes once it has ended (200), or after 30 s as it then stands (201). It makes no model.
    """
    row = await run_in_threadpool(services.jobs.submit, caller, spec, idempotency_key, kind="dry_run")
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    if (seconds := wait_seconds(prefer)) is not None:
        row = await _wait_for_end(services, row, seconds)
        response.headers["Preference-Applied"] = f"wait={seconds}"
        response.status_code = 200 if row.status in ENDED else 201
    return JobBody.of(row)


async def _wait_for_end(services: Services, row: JobRow, seconds: int) -> JobRow:
    """The job once it has ended, or as it stands after so many seconds."""
    give_up_at = time.monotonic() + seconds
    while row.status not in ENDED and time.monotonic() < give_up_at:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        row = await run_in_threadpool(services.jobs.get, row.project_id, row.id)
    return row


@router.get("", summary="List jobs", openapi_extra={"parameters": [METADATA_PARAMETER]})
def list_jobs(
    caller: Authenticated,
    services: Wired,
    page: NewestFirst,
    metadata: MetadataFilter,
    status: Annotated[ShownStatus | None, Query(description="As shown in a job.")] = None,
    dataset: Annotated[str | None, Query(description="Id of a dataset.")] = None,
    kind: Annotated[JobKind, Query(description="Kind of job.")] = "training",
) -> Page[JobBody]:
    """The project's jobs, the newest first. `metadata[key]=value` filters by your own pairs."""
    wanted = {"kind": kind, "status": status, "dataset_id": dataset}
    filters = {name: value for name, value in wanted.items() if value is not None}
    rows, has_more = services.jobs.list_page(caller.project_id, page, filters=filters, metadata=metadata)
    return Page[JobBody].model_validate(page.page([JobBody.of(row) for row in rows], has_more=has_more))


@router.get("/{job_id:job}", summary="Get a job")
def get_job(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """A job: its status, how far it is, and what came of it."""
    return JobBody.of(services.jobs.get(caller.project_id, job_id))


@router.post("/{job_id:job}/cancel", status_code=202, summary="Cancel a job")
def cancel_job(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """A waiting job ends at once; a running one as soon as its worker hears of it. 409 once it has ended."""
    return JobBody.of(services.jobs.cancel(caller, job_id))


@router.post("/{job_id:job}/pause", status_code=202, summary="Pause a job")
def pause_job(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """A running job writes a checkpoint and frees its worker."""
    return JobBody.of(services.jobs.pause(caller, job_id))


@router.post("/{job_id:job}/resume", status_code=202, summary="Resume a paused job")
def resume_job(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """A paused job goes on from its newest checkpoint, to the same result as if it had never stopped."""
    return JobBody.of(services.jobs.resume(caller, job_id))


@router.get(
    "/{job_id:job}/events",
    summary="List or stream a job's events",
    response_model=Page[EventBody],
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "A stream that was asked to go on after the job's last event: nothing more will come."},
    },
)
async def list_job_events(
    job_id: str,
    caller: Authenticated,
    services: Wired,
    request: Request,
    page: OldestFirst,
    accept: Annotated[str, Header(description="text/event-stream for a stream.")] = "application/json",
    last_event_id: Annotated[str | None, Header(description="Where a stream goes on.")] = None,
) -> Any:
    """What happened, in order. With `Accept: text/event-stream` the same events come as they happen, to the last.

    `Last-Event-ID` (as browsers send it) and `after` mean the same.
    """
    after = parse_event_id(last_event_id or page.after)
    if "text/event-stream" not in accept:
        rows, has_more, _ = await run_in_threadpool(services.jobs.events, caller.project_id, job_id, page, after)
        return page.page([EventBody.of(row) for row in rows], has_more=has_more)
    await run_in_threadpool(services.jobs.get, caller.project_id, job_id)  # a 404 must come before the stream begins
    authenticate = partial(authenticate_request, request)
    looks = request.app.state.event_looks
    stream = EventStream(services.jobs, looks, caller.project_id, job_id, after, authenticate)
    if await stream.is_exhausted():
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.get("/{job_id:job}/metrics", summary="List a job's metrics")
def list_job_metrics(
    job_id: str,
    caller: Authenticated,
    services: Wired,
    page: OldestFirst,
    name: Annotated[str | None, Query(description="One series, e.g. train/loss.")] = None,
) -> Page[MetricBody]:
    """Every value of every series, series by series, each in the order of its steps."""
    rows, has_more = services.jobs.metrics(caller.project_id, job_id, page, name=name)
    return Page[MetricBody].model_validate(page.page([MetricBody.of(row) for row in rows], has_more=has_more))


@router.get("/{job_id:job}/checkpoints", summary="List a job's checkpoints")
def list_job_checkpoints(
    job_id: str, caller: Authenticated, services: Wired, page: OldestFirst
) -> Page[CheckpointBody]:
    """The stored states a job would resume from: the newest ones are kept."""
    rows, has_more = services.jobs.checkpoints(caller.project_id, job_id, page)
    return Page[CheckpointBody].model_validate(page.page([CheckpointBody.of(row) for row in rows], has_more=has_more))


@router.post(
    "/{job_id:job}/checkpoints/{checkpoint_id:ckpt}/publish",
    status_code=201,
    summary="Make a checkpoint a model",
)
def publish_checkpoint(
    job_id: str,
    checkpoint_id: str,
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    """Queue a short job that makes a model of a training's checkpoint, whatever became of the training.

    The model is what the training would have published had it ended at that step: its best weights so far where it
    stops early, their average where it keeps one; calibrated and measured on the same parts. The reply is the new job,
    whose `model_id` names the model once it has succeeded. A checkpoint is published once: a repeat returns that job.
    While it runs the checkpoint is kept.
    """
    row = services.jobs.publish(caller, job_id, checkpoint_id, idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return JobBody.of(row)
