"""/v1/comparisons: jobs of a kind of their own.

They are submitted and looked at here; paused, resumed, cancelled and watched under /v1/jobs.
"""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from app.http.auth import Authenticated, needs
from app.http.examples import COMPARISONS
from app.http.idempotency import IdempotencyKey
from app.http.services import Wired
from app.jobs.schemas import JobBody
from ml.specs.comparison import Comparison

router = APIRouter(prefix="/v1/comparisons", tags=["jobs"], dependencies=[needs("jobs")])


@router.post("", status_code=201, summary="Compare losses")
def create_comparison(
    comparison: Annotated[Comparison, Body(openapi_examples=COMPARISONS)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    """Train several losses on the same split with the same seeds, and say which differ by more than chance.

    With `folds` in the place of `seeds` it is a cross-validation: every loss trains on the same folds, and one alone
    will do.

    The reply is a job of kind `comparison`: wait for it, pause or cancel it under `/v1/jobs`. Once it has
    succeeded its `result` holds the table: each loss's mean and deviation, its difference from the first one with a
    95% interval, and a verdict; of folds also what all rows come to at once, in `pooled`. It makes no model. With
    `tuning` = `frozen` the texts are encoded once for all runs.
    """
    row = services.jobs.submit(caller, comparison, idempotency_key, kind="comparison")
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return JobBody.of(row)


@router.get("/{job_id:job}", summary="Get a comparison")
def get_comparison(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """The job, as `GET /v1/jobs/{job_id}` has it; 404 for a job of another kind."""
    return JobBody.of(services.jobs.get(caller.project_id, job_id, "comparison"))
