"""A pure ASGI middleware that gives each request an id and repeats it in the reply."""

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ids import new_id
from app.logs import log_about
from app.tracing import describe_request

_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIdMiddleware:
    """Take the caller's `x-request-id` when it is a plain word, else make one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _ACCEPTABLE.fullmatch(given) else new_id("req")
        scope["request_id"] = request_id
        log_about(request_id=request_id)  # until the request's task ends
        describe_request(request_id, has_query=bool(scope["query_string"]))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)
