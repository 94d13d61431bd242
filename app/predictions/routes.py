"""POST /v1/predictions."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from pydantic_core import to_json

from app.http.auth import Authenticated, needs
from app.http.disconnect import while_connected
from app.http.errors import ErrorBody
from app.http.examples import PREDICTIONS
from app.http.services import Wired
from app.predictions.schemas import Prediction, PredictionRequest

router = APIRouter(prefix="/v1/predictions", tags=["predictions"], dependencies=[needs("predict")])


@router.post("", summary="Classify texts", response_model=Prediction, responses={404: {"model": ErrorBody}})
async def predict(
    asked: Annotated[PredictionRequest, Body(openapi_examples=PREDICTIONS)],
    caller: Authenticated,
    services: Wired,
    request: Request,
) -> Response:
    """The label, its probability, and the probability of every label, for one text or for a list."""
    prediction = await while_connected(request.receive, services.predictions.predict(caller, asked))
    services.metrics.observe_answer(prediction["timings_ms"])
    # As it is: to check our own answer against its schema takes longer than to make it.
    return Response(to_json(prediction, inf_nan_mode="null"), media_type="application/json")
