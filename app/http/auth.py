"""Who is calling: `Authorization: Bearer KEY`, on every route but the open ones."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from app.errors import AuthenticationError
from app.keys.service import Caller, KeyService

_bearer = HTTPBearer(auto_error=False, description="An API key, e.g. the one in `admin.key`.")


async def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """The caller, or a 401."""
    if credentials is None:
        raise AuthenticationError(
            "This call needs an API key: send the header 'Authorization: Bearer KEY'.", code="missing_api_key"
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
