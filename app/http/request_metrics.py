"""A pure ASGI middleware that counts requests and times them, by the template of their path."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.metrics import Metrics


class RequestMetricsMiddleware:
    """A request is counted when its reply begins; one whose client left before has none."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, is_counted = time.perf_counter(), False

        def count(status: int) -> None:
            nonlocal is_counted
            is_counted = True
            self._metrics.observe_request(scope["method"], route_of(scope), status, time.perf_counter() - began)

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_count)
        except Exception:
            if not is_counted:
                count(500)  # its reply is made outside of every middleware
            raise


def route_of(scope: Scope) -> str:
    """The template of a request's path, once it was routed; "none" where nothing answers to the path."""
    if (route := scope.get("route")) is not None:
        path: str = route.path_format
        return path
    found: str = scope.get("route_path", "none")
    return found
