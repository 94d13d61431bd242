"""Bodies have a limit, and one that is too large is refused in the one shape of errors, not in plain text.

A route may set a limit of its own (`max_body_size=`): the framework takes it in place of this one.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.errors import http_error_reply


class BodyLimitMiddleware:
    """The framework's limit, and our words."""

    def __init__(self, app: ASGIApp, max_body_size: int) -> None:
        self._limited = RequestBodyLimitMiddleware(app, max_body_size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        is_replaced = False

        async def send_ours(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                is_replaced = Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")
                if is_replaced:
                    reply = http_error_reply(Request(scope), HTTPException(413))
                    await reply(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self._limited(scope, receive, send_ours)
