"""The short way of POST /v1/predictions: a call that is in order is answered here, every other goes on as it came.

It is the one route whose time counts. What a framework does for a route (routing, arguments, a stack of handlers) takes
longer than all that the event loop does for an answer.
"""

from collections.abc import Iterable

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ServiceError
from app.http.disconnect import CLIENT_LEFT, ClientLeftError, while_connected
from app.http.errors import error_reply
from app.http.metrics import Metrics
from app.keys.caller import Caller
from app.keys.service import KeyService
from app.limits.service import LimitService
from app.predictions.schemas import PredictionRequest
from app.predictions.service import PredictionService
from app.tracing import describe_route

PATH = "/v1/predictions"


class PredictionShortcut:
    """ASGI middleware. In order is a call with a key that was checked a moment ago, a body of a known and allowed
    length, and JSON that fits the schema.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyService,
        predictions: PredictionService,
        limits: LimitService,
        metrics: Metrics,
        max_body_bytes: int,
    ) -> None:
        self.app = app
        self._keys = keys
        self._predictions = predictions
        self._limits = limits
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["route_path"] = PATH  # where no router will say so
        describe_route("POST", PATH)
        try:
            if (caller := self._caller(scope["headers"])) is None:
                await self._hand_on(scope, receive, send)
            else:
                await self._answer(caller, scope, receive, send)
        except Exception:
            self._metrics.observe_failure(500)
            raise

    async def _answer(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        body, is_more = b"", True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._metrics.observe_failure(CLIENT_LEFT)
                return
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
        try:
            asked = PredictionRequest.model_validate_json(body)
        except ValidationError:
            await self._hand_on(scope, _again(body, receive), send)
            return
        try:
            prediction = await while_connected(receive, self._predictions.predict(caller, asked))
        except ClientLeftError:
            self._metrics.observe_failure(CLIENT_LEFT)
            return
        except ServiceError as error:
            self._metrics.observe_failure(error.status)
            await error_reply(error)(scope, receive, send)
            return
        self._metrics.observe_answer(prediction["timings_ms"])
        # As it is: to check our own answer against its schema takes longer than to make it.
        answer = to_json(prediction, inf_nan_mode="null")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._metrics.observe_failure(message["status"])
            await send(message)

        await self.app(scope, receive, send_and_count)

    def _caller(self, given: Iterable[tuple[bytes, bytes]]) -> Caller | None:
        """Who asks in order, as far as the headers tell."""
        headers = dict(given)
        length = headers.get(b"content-length", b"")
        if headers.get(b"content-type") != b"application/json" or not length.isdigit():
            return None
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if int(length) > self._max_body_bytes or scheme.lower() != b"bearer":
            return None
        caller = self._keys.recall(secret.decode("latin-1"))
        if caller is None or not caller.may("predict") or self._limits.rates(caller, "predictions"):
            return None  # what refuses and counts is on the long way
        return caller


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for who reads it next."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
