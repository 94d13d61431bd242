"""/v1/models."""

import shutil
from pathlib import Path

from fastapi import APIRouter, BackgroundTasks, Response
from fastapi.responses import FileResponse

from app.http.auth import Authenticated, needs
from app.http.errors import ErrorBody
from app.http.metadata import METADATA_PARAMETER, MetadataFilter
from app.http.openapi import FILE_SCHEMA
from app.http.pagination import NewestFirst, Page
from app.http.services import Wired
from app.models.schemas import ModelBody, ModelReport

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[needs("jobs")])


@router.get("", summary="List models", openapi_extra={"parameters": [METADATA_PARAMETER]})
def list_models(caller: Authenticated, services: Wired, page: NewestFirst, metadata: MetadataFilter) -> Page[ModelBody]:
    """The project's models, the newest first. `metadata[key]=value` filters."""
    rows, has_more = services.models.list_page(caller.project_id, page, metadata)
    return Page[ModelBody].model_validate(page.page([ModelBody.of(row) for row in rows], has_more=has_more))


@router.get("/{model_id}", summary="Get a model")
def get_model(model_id: str, caller: Authenticated, services: Wired) -> ModelBody:
    """A model: its labels, its loss, how well it did."""
    return ModelBody.of(services.models.get_row(caller.project_id, model_id))


@router.get("/{model_id}/report", summary="Get a model's report")
def get_model_report(model_id: str, caller: Authenticated, services: Wired) -> ModelReport:
    """Precision, recall, F1 and rows of each label."""
    return ModelReport.of(services.models.get_row(caller.project_id, model_id))


@router.get(
    "/{model_id}/download",
    summary="Download a model",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/zip": {"schema": FILE_SCHEMA}}, "description": "A zip of the model's folder."}
    },
)
def download_model(model_id: str, caller: Authenticated, services: Wired, background: BackgroundTasks) -> FileResponse:
    """All the model needs elsewhere: ONNX file, tokenizer, weights, labels, and a README that says how to load it."""
    file = services.models.write_zip(services.models.get_row(caller.project_id, model_id))
    background.add_task(shutil.rmtree, Path(file).parent, ignore_errors=True)
    return FileResponse(file, media_type="application/zip", filename=f"{model_id}.zip")


@router.delete(
    "/{model_id}",
    status_code=204,
    summary="Delete a model",
    responses={409: {"model": ErrorBody, "description": "A live job uses it, or an alias stands for it"}},
)
def delete_model(model_id: str, caller: Authenticated, services: Wired) -> Response:
    """The model and its files are gone; its job and dataset stay. 409 while a live job starts or learns from it,
    or an alias stands for it.
    """
    services.models.delete(caller, model_id)
    services.served.forget(model_id)
    return Response(status_code=204)
