"""Who is calling, and whether they may: `Authorization: Bearer KEY`, on every route but the open ones."""

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from app.errors import AuthenticationError, PermissionDeniedError
from app.http.limits import tell_rates
from app.keys.caller import Caller, Scope
from app.keys.service import KeyService

_bearer = HTTPBearer(auto_error=False, description="An API key, e.g. the one in `admin.key`.")


async def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """The caller, or a 401."""
    if credentials is None:
        raise AuthenticationError(
            "This call needs an API key: send the header 'Authorization: Bearer KEY'. The page /docs needs none.",
            code="missing_api_key",
        )
    keys: KeyService = request.app.state.services.keys
    # A key that was checked a moment ago costs no thread and no query.
    if (caller := keys.recall(credentials.credentials)) is not None:
        return caller
    return await run_in_threadpool(keys.authenticate, credentials.credentials)


async def authenticate_request(request: Request) -> Caller:
    """The same, before FastAPI has looked at a request or where it never will."""
    return await authenticate(request, await _bearer(request))


Authenticated = Annotated[Caller, Depends(authenticate)]


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raise PermissionDeniedError where the caller's key has not this scope."""
    if not caller.may(scope):
        raise PermissionDeniedError(
            f"This call needs a key with the scope '{scope}', and this key has "
            f"{', '.join(map(repr, sorted(caller.scopes)))}. Make one with POST /v1/keys, or ask who holds an admin "
            "key.",
            code="missing_scope",
        )


class Admission:
    """What a route asks of its caller: a scope, or none in particular; and that the call is within its rates."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, caller: Authenticated, request: Request) -> None:
        """Let the call in, or raise PermissionDeniedError or TooManyRequestsError."""
        if self.scope is not None:
            require_scope(caller, self.scope)
        limits = request.app.state.services.limits
        if rates := limits.rates(caller, "predictions" if self.scope == "predict" else "requests"):
            taken = await run_in_threadpool(limits.take, rates)
            tell_rates(request.scope, taken)
            limits.admit(taken)


def needs(scope: Scope | None) -> Any:
    """The dependency of a route, or of all routes of a router, on a scope; None for any key."""
    return Depends(Admission(scope))
