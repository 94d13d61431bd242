"""The short way of POST /v1/predictions: a call that is in order is answered here, every other goes on as it came.

It is the one route whose time counts. What a framework does for a route (routing, arguments, a stack of handlers) takes
longer than all that the event loop does for an answer.
"""

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ServiceError
from app.http.disconnect import ClientLeftError, while_connected
from app.http.errors import error_reply
from app.keys.service import Caller, KeyService
from app.predictions.schemas import PredictionRequest
from app.predictions.service import PredictionService

PATH = "/v1/predictions"


class PredictionShortcut:
    """ASGI middleware. In order is a call with a key that was checked a moment ago, a body of a known and allowed
    length, and JSON that fits the schema.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyService, predictions: PredictionService, max_body_bytes: int) -> None:
        self.app = app
        self._keys = keys
        self._predictions = predictions
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        caller = self._caller(scope)
        if caller is None:
            await self.app(scope, receive, send)
            return
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        try:
            asked = PredictionRequest.model_validate_json(body)
        except ValidationError:
            await self.app(scope, _again(body, receive), send)
            return
        try:
            prediction = await while_connected(receive, self._predictions.predict(caller, asked))
        except ClientLeftError:
            return
        except ServiceError as error:
            await error_reply(error)(scope, receive, send)
            return
        # As it is: to check our own answer against its schema takes longer than to make it.
        answer = to_json(prediction, inf_nan_mode="null")
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _caller(self, scope: Scope) -> Caller | None:
        """Who asks for a prediction in order, as far as the headers tell."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            return None
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if headers.get(b"content-type") != b"application/json" or not length.isdigit():
            return None
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if int(length) > self._max_body_bytes or scheme.lower() != b"bearer":
            return None
        return self._keys.recall(secret.decode("latin-1"))


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
