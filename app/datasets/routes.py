"""/v1/datasets: HTTP in and out."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.types import Message

from app.datasets.schemas import Dataset, DatasetRecommendation, DatasetRowItem
from app.datasets.service import read_form
from app.errors import BadRequestError, UnsupportedMediaTypeError
from app.http.auth import Admission, Authenticated, authenticate_request
from app.http.errors import ErrorBody
from app.http.examples import DATASETS
from app.http.idempotency import IdempotencyKey
from app.http.metadata import METADATA_PARAMETER, MetadataFilter
from app.http.openapi import FILE_SCHEMA, FORM_TYPE
from app.http.pagination import NewestFirst, OldestFirst, Page
from app.http.services import Wired
from app.settings import Settings
from ml.specs.errors import did_you_mean, refuse
from ml.specs.job import JobSpec

PARQUET_TYPE = "application/vnd.apache.parquet"
MAX_FIELD_BYTES = 1 << 17  # metadata at its longest, written in JSON escapes


_ADMISSION = Admission("datasets")


class GuardedRoute(APIRoute):
    """A route that admits its caller before it reads the body: FastAPI would spool the upload of one without a key, or
    with nothing left of its rates, to disk first.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The usual handler, behind the door."""
        handle = super().get_route_handler()

        async def handle_guarded(request: Request) -> Response:
            await _ADMISSION(await authenticate_request(request), request)
            kind = request.headers.get("content-type", "").lower()
            if request.method == "POST" and not kind.startswith(FORM_TYPE):
                raise UnsupportedMediaTypeError(
                    f"Send the file as {FORM_TYPE}, in a field named 'file'.", code="unsupported_media_type"
                )
            return await handle(_keeping_its_end(request))

        return handle_guarded


_END_BYTES = 1_024  # of a body, in which a form's last boundary stands: one has 70 characters at most


def _keeping_its_end(request: Request) -> Request:
    """The same request, of whose body `state.end` has the last bytes."""
    request.state.end = b""

    async def receive() -> Message:
        message = await request.receive()
        request.state.end = (request.state.end + message.get("body", b"")[-_END_BYTES:])[-_END_BYTES:]
        return message

    return Request(request.scope, receive)


FIELDS = ("file", "name", "columns", "encoding", "delimiter", "metadata")


async def _known_fields(request: Request) -> None:
    """Refuse a field that nothing reads: a misspelt `columns` would be lost in silence. And a file sent as text; and a
    form without an end, whose last field was dropped.
    """
    form = await request.form()
    _, options = parse_options_header(request.headers["content-type"])
    if b"--" + options[b"boundary"] + b"--" not in request.state.end:
        raise BadRequestError(
            "The form was cut off: it ends without its last boundary. Send the file again.", code="invalid_form"
        )
    for field in form:
        if field not in FIELDS:
            raise refuse(
                f"/{field}",
                f"unknown field '{field}'.{did_you_mean(field, FIELDS)} Fields: {', '.join(FIELDS)}.",
                "unknown_field",
            )
    if isinstance(form.get("file"), str):
        raise refuse("/file", "'file' came as text: send a file. With curl that is -F file=@NAME, with the @.")


def router(settings: Settings) -> APIRouter:
    """The routes of datasets."""
    routes = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=GuardedRoute)
    routes.add_api_route(
        "",
        create_dataset,
        methods=["POST"],
        status_code=201,
        summary="Upload a dataset",
        max_body_size=settings.max_upload_bytes,
        openapi_extra={"requestBody": {"content": {FORM_TYPE: {"examples": DATASETS}}}},
        dependencies=[Depends(_known_fields)],
        form_limits={"max_files": 1, "max_fields": 8, "max_part_size": MAX_FIELD_BYTES},
    )
    routes.add_api_route(
        "",
        list_datasets,
        methods=["GET"],
        summary="List datasets",
        openapi_extra={"parameters": [METADATA_PARAMETER]},
    )
    routes.add_api_route("/{dataset_id:ds}", get_dataset, methods=["GET"], summary="Get a dataset")
    routes.add_api_route("/{dataset_id:ds}/rows", list_rows, methods=["GET"], summary="Read rows")
    routes.add_api_route(
        "/{dataset_id:ds}/recommendation",
        get_recommendation,
        methods=["GET"],
        summary="Which loss to begin with",
        responses={422: {"model": ErrorBody, "description": "Unknown metric, or no labels to train on"}},
    )
    routes.add_api_route(
        "/{dataset_id:ds}/content",
        get_content,
        methods=["GET"],
        summary="Download the Parquet file",
        response_class=StreamingResponse,
        responses={200: {"content": {PARQUET_TYPE: {"schema": FILE_SCHEMA}}, "description": "The file."}},
    )
    routes.add_api_route(
        "/{dataset_id:ds}",
        delete_dataset,
        methods=["DELETE"],
        status_code=204,
        summary="Delete a dataset",
        responses={409: {"model": ErrorBody, "description": "A live job uses it"}},
    )
    return routes


def optional_field(description: str) -> Any:
    """A field that the page /docs sends empty, which is as if left out: without an example it fills in "string"."""
    return Form(description=description, examples=[""])


async def create_dataset(
    caller: Authenticated,
    services: Wired,
    response: Response,
    file: Annotated[UploadFile, File(description="CSV, TSV, JSONL or Parquet, plain or gzip.")],
    name: Annotated[str | None, optional_field("Default: the file's name.")] = None,
    columns: Annotated[
        str | None,
        optional_field(
            "A JSON object from role (text, text_pair, label, group, split) to header, e.g. "
            '`{"text": "sentence1", "text_pair": "sentence2", "label": "score"}`; default: by name.'
        ),
    ] = None,
    encoding: Annotated[str | None, optional_field("E.g. cp1252; default: UTF-8.")] = None,
    delimiter: Annotated[str | None, optional_field("One character; default: found in the header.")] = None,
    metadata: Annotated[
        str | None, optional_field('A JSON object of up to 16 pairs of text, e.g. `{"team": "nlp"}`.')
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Dataset:
    """Read a file of texts, with or without labels, and keep it. It is never changed afterwards."""
    form = read_form(name, columns, encoding, delimiter, metadata)
    async with services.datasets.upload_turn():
        row = await run_in_threadpool(services.datasets.create, caller, file.file, file.filename, form, idempotency_key)
    response.headers["Location"] = f"/v1/datasets/{row.id}"
    return Dataset.of(row)


def list_datasets(caller: Authenticated, services: Wired, page: NewestFirst, metadata: MetadataFilter) -> Page[Dataset]:
    """The project's datasets, the newest first. `metadata[key]=value` filters."""
    rows, has_more = services.datasets.list_page(caller.project_id, page, metadata)
    return Page[Dataset].model_validate(page.page([Dataset.of(row) for row in rows], has_more=has_more))


def get_dataset(dataset_id: str, caller: Authenticated, services: Wired) -> Dataset:
    """What is known of a dataset."""
    return Dataset.of(services.datasets.get_row(caller.project_id, dataset_id))


def list_rows(dataset_id: str, caller: Authenticated, services: Wired, page: OldestFirst) -> Page[DatasetRowItem]:
    """Its rows, in the file's order."""
    row = services.datasets.get_row(caller.project_id, dataset_id)
    items, has_more = services.datasets.read_rows(row, page)
    return Page[DatasetRowItem].model_validate(page.page(items, has_more=has_more))


def get_recommendation(
    dataset_id: str,
    caller: Authenticated,
    services: Wired,
    metric: Annotated[
        str | None, Query(description="What the model will be judged by; default: by task.", examples=["macro_f1"])
    ] = None,
) -> DatasetRecommendation:
    """A loss for these labels, with the figures it rests on, an alternative, and the papers.

    It is a rule of thumb over the label column, not a promise: try it with `POST /v1/jobs/dry_run`.
    """
    row = services.datasets.get_row(caller.project_id, dataset_id)
    base = services.base_models.get(JobSpec(dataset=dataset_id).model)
    return DatasetRecommendation.of(row.id, services.datasets.recommend(row, base, metric))


def get_content(dataset_id: str, caller: Authenticated, services: Wired) -> StreamingResponse:
    """The stored file: one column of text for each of the upload's, missing cells as null."""
    row = services.datasets.get_row(caller.project_id, dataset_id)
    headers = {
        "Content-Length": str(row.bytes),
        "Content-Disposition": f'attachment; filename="{row.id}.parquet"',
        "ETag": f'"{row.sha256}"',
    }
    return StreamingResponse(services.datasets.stream(row), media_type=PARQUET_TYPE, headers=headers)


def delete_dataset(dataset_id: str, caller: Authenticated, services: Wired) -> None:
    """Remove a dataset. Models trained on it stay."""
    services.datasets.delete(caller, dataset_id)
