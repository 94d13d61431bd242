"""A pure ASGI middleware that keeps some of the process's files for its own work: its database, its store, its models.

Each connection takes one of the files that a process may have open. One too many is refused, and closed.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import UnavailableError
from app.http.errors import error_reply

# A database's pool, the files of models that load, uploads in work: with room to spare.
OWN_FILES = 256


def most_connections(files: int) -> int:
    """That a process which may have so many files open should serve."""
    return max(files - OWN_FILES, files // 2)


class ConnectionLimitMiddleware:
    """503 while there are more `app.state.connections` than `max_connections`; only /healthz still answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            state = scope["app"].state
            if len(state.connections) > state.max_connections and scope["path"] != "/healthz":
                reply = error_reply(
                    UnavailableError(
                        f"This server has more than the {state.max_connections} connections it can serve, as its limit "
                        "of open files allows. Nothing was done; send this again later.",
                        code="too_many_connections",
                        retry_after=1,
                    )
                )
                reply.headers["connection"] = "close"
                await reply(scope, receive, send)
                return
        await self._app(scope, receive, send)
