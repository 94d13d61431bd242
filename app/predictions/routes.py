"""POST /v1/predictions."""

from typing import Any

from fastapi import APIRouter

from app.http.auth import Authenticated
from app.http.services import Wired
from app.predictions.schemas import Prediction, PredictionRequest

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])


@router.post("", summary="Classify texts", response_model=Prediction, response_model_exclude_none=True)
async def predict(request: PredictionRequest, caller: Authenticated, services: Wired) -> Any:
    """The label, its probability, and the probability of every label, for one text or for a list."""
    return await services.predictions.predict(caller, request)
