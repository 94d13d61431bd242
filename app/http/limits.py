"""The headers that tell how much of a rate is left: `RateLimit-Policy` and `RateLimit` of the IETF's draft
(draft-ietf-httpapi-ratelimit-headers), which can tell of several rates at once.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.limits.rates import Taken

_TAKEN = "minimand.taken"


class RateLimitMiddleware:
    """ASGI middleware: a reply tells what its call took."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken: list[Taken] = []
        scope[_TAKEN] = taken

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start" and taken:
                headers = MutableHeaders(scope=message)
                headers["RateLimit-Policy"] = ", ".join(
                    f'"{_name(one)}";q={one.rate.amount};w={one.rate.period}' for one in taken
                )
                headers["RateLimit"] = ", ".join(f'"{_name(one)}";r={one.remaining};t={one.full_in}' for one in taken)
            await send(message)

        await self.app(scope, receive, send_with_rates)


def tell_rates(scope: Scope, taken: list[Taken]) -> None:
    """Let the reply tell of these."""
    told: list[Taken] = scope.get(_TAKEN, [])
    told += taken


def _name(taken: Taken) -> str:
    return f"{taken.rate.name}-{'key' if taken.rate.counted.startswith('key_') else 'project'}"
