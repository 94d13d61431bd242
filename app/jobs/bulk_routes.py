"""/v1/prediction_batches and /v1/evaluations: jobs that put a model to a whole dataset.

They are submitted and looked at here; paused, resumed, cancelled and watched under /v1/jobs.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.responses import StreamingResponse

from app.http.auth import Authenticated, needs
from app.http.errors import ErrorBody
from app.http.examples import EVALUATIONS, PREDICTION_BATCHES
from app.http.idempotency import IdempotencyKey
from app.http.services import Services, Wired
from app.jobs.schemas import JobBody
from app.keys.caller import Caller
from ml.bulk.report import ERRORS, OUTPUT
from ml.specs.bulk import ModelEvaluation, PredictionBatch
from ml.specs.job import JobKind

JSON_LINES = "application/jsonl"

prediction_batches = APIRouter(prefix="/v1/prediction_batches", tags=["predictions"], dependencies=[needs("jobs")])
evaluations = APIRouter(prefix="/v1/evaluations", tags=["models"], dependencies=[needs("jobs")])


def _lines(example: str) -> dict[str, Any]:
    """What the documentation says of a route that streams a file."""
    content = {JSON_LINES: {"schema": {"type": "string"}, "example": example + "\n"}}
    return {
        "response_class": StreamingResponse,
        "responses": {
            200: {"content": content, "description": "A JSON object a line."},
            409: {"model": ErrorBody, "description": "The job has not succeeded"},
        },
    }


ANSWER = '{"row":1,"label":"refund","score":0.91,"scores":{"order_status":0.09,"refund":0.91}}'
MEASURED = ANSWER[:-1] + ',"expected":"refund","is_right":true,"perturbed":{"typo":{"label":"refund","score":0.84}}}'
ERROR = '{"row":7,"code":"empty_text","message":"column \'text\' is empty; there is nothing to classify."}'


@prediction_batches.post("", status_code=201, summary="Classify a whole dataset")
def create_prediction_batch(
    batch: Annotated[PredictionBatch, Body(openapi_examples=PREDICTION_BATCHES)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    """Answer every row of a dataset with a model, as `POST /v1/predictions` would, in the background.

    The reply is a job of kind `prediction_batch`: wait for it, pause or cancel it under `/v1/jobs`. A row without a
    text never fails the batch: it is told of in the errors. `progress` holds the `request_counts` so far; once the job
    has succeeded its `result` does, and both files can be downloaded for `MINIMAND_OUTPUT_DAYS` (30) days. A batch
    whose worker dies goes on where it was.
    """
    row = services.jobs.submit(caller, batch, idempotency_key, kind="prediction_batch")
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return JobBody.of(row)


@prediction_batches.get("/{job_id:job}", summary="Get a prediction batch")
def get_prediction_batch(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """The job, as `GET /v1/jobs/{job_id}` has it; 404 for a job of another kind."""
    return JobBody.of(services.jobs.get(caller.project_id, job_id, "prediction_batch"))


@prediction_batches.get("/{job_id:job}/output", summary="Download a batch's answers", **_lines(ANSWER))
def get_prediction_batch_output(job_id: str, caller: Authenticated, services: Wired) -> StreamingResponse:
    """A line for each row that was answered, in the dataset's order: `{"row": 1, "label": …, "score": …, …}`.

    Rows count from 1; beside the number each line is what a prediction's `results` would hold.
    """
    return _download(caller, services, job_id, "prediction_batch", OUTPUT)


@prediction_batches.get("/{job_id:job}/errors", summary="Download a batch's errors", **_lines(ERROR))
def get_prediction_batch_errors(job_id: str, caller: Authenticated, services: Wired) -> StreamingResponse:
    """A line for each row that could not be answered: `{"row": 7, "code": "empty_text", "message": …}`."""
    return _download(caller, services, job_id, "prediction_batch", ERRORS)


@evaluations.post("", status_code=201, summary="Evaluate a model on a dataset")
def create_evaluation(
    evaluation: Annotated[ModelEvaluation, Body(openapi_examples=EVALUATIONS)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobBody:
    """Measure any model on any labelled dataset of its task, in the background.

    The reply is a job of kind `evaluation`: wait for it, pause or cancel it under `/v1/jobs`. Once it has succeeded its
    `result` holds the metrics of the model's task; with `group_column` those of each group, and of each metric the gap
    between the groups; and for each of `perturbations` what becomes of metrics and answers when every text is changed
    in that way. A dataset that the model cannot be measured on is refused with 422.
    """
    row = services.jobs.submit(caller, evaluation, idempotency_key, kind="evaluation")
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return JobBody.of(row)


@evaluations.get("/{job_id:job}", summary="Get an evaluation")
def get_evaluation(job_id: str, caller: Authenticated, services: Wired) -> JobBody:
    """The job, as `GET /v1/jobs/{job_id}` has it; 404 for a job of another kind."""
    return JobBody.of(services.jobs.get(caller.project_id, job_id, "evaluation"))


@evaluations.get("/{job_id:job}/output", summary="Download an evaluation's answers", **_lines(MEASURED))
def get_evaluation_output(job_id: str, caller: Authenticated, services: Wired) -> StreamingResponse:
    """A line for each row that was measured: `{"row": 1, "label": …, "expected": …, "is_right": true, …}`.

    With perturbations, `perturbed` holds the answer to the changed text of each type.
    """
    return _download(caller, services, job_id, "evaluation", OUTPUT)


@evaluations.get("/{job_id:job}/errors", summary="Download an evaluation's errors", **_lines(ERROR))
def get_evaluation_errors(job_id: str, caller: Authenticated, services: Wired) -> StreamingResponse:
    """A line for each row that could not be measured: `{"row": 7, "code": "missing_label", "message": …}`."""
    return _download(caller, services, job_id, "evaluation", ERRORS)


def _download(caller: Caller, services: Services, job_id: str, kind: JobKind, name: str) -> StreamingResponse:
    key, file = services.jobs.output_file(caller.project_id, job_id, kind, name)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f'attachment; filename="{job_id}-{name}"',
        "ETag": f'"{file.sha256}"',
    }
    return StreamingResponse(services.store.stream(key), media_type=JSON_LINES, headers=headers)
