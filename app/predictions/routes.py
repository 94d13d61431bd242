"""POST /v1/predictions."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import to_json

from app.http.auth import Authenticated, recall
from app.http.disconnect import while_connected
from app.http.errors import ErrorBody
from app.http.services import Wired
from app.predictions.schemas import Prediction, PredictionRequest


class ShortRoute(APIRoute):
    """Documented as every route, and answered as every route where anything is amiss. A call that is in order is read
    in one step: FastAPI's way to a function's arguments takes longer than all else that is done on the event loop.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer_as_usual = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await answer_quickly(request)
            except Exception as error:
                request.app.state.services.metrics.observe_failure(error)
                raise

        async def answer_quickly(request: Request) -> Response:
            headers = request.headers
            if headers.get("content-type") != "application/json" or "content-length" not in headers:
                return await answer_as_usual(request)
            if (caller := recall(request)) is None:
                return await answer_as_usual(request)
            try:
                asked = PredictionRequest.model_validate_json(await request.body())
            except ValidationError:
                return await answer_as_usual(request)
            return await predict(asked, caller, request.app.state.services, request)

        return answer


router = APIRouter(prefix="/v1/predictions", tags=["predictions"], route_class=ShortRoute)


@router.post("", summary="Classify texts", response_model=Prediction, responses={429: {"model": ErrorBody}})
async def predict(asked: PredictionRequest, caller: Authenticated, services: Wired, request: Request) -> Response:
    """The label, its probability, and the probability of every label, for one text or for a list."""
    prediction = await while_connected(request, services.predictions.predict(caller, asked))
    services.metrics.observe_answer(prediction["timings_ms"])
    # As it is: to check our own answer against its schema takes longer than to make it.
    return Response(to_json(prediction, inf_nan_mode="null"), media_type="application/json")
