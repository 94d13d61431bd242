"""Every error leaves in one shape: {"error": {message, type, param, code}}. The only place that maps errors to HTTP."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.errors import (
    AuthenticationError,
    BadRequestError,
    InvalidInputError,
    ServiceError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from app.http.auth import authenticate_request
from app.http.disconnect import CLIENT_LEFT, ClientLeftError
from app.http.openapi import FORM_TYPE
from ml.artifact.manifest import is_disk_full
from ml.specs.errors import Problem, SpecError, explain

log = logging.getLogger(__name__)

CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
# Where a refusal that passes does not say when.
RETRY_AFTER_SECONDS = 1


class ErrorDetail(BaseModel):
    """What went wrong, and where."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The shape of every error reply."""

    error: ErrorDetail


def install_error_handlers(app: FastAPI) -> None:
    """Give every kind of failure its reply."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OSError, _os_error)
    app.add_exception_handler(UnicodeEncodeError, _unicode_error)
    app.add_exception_handler(ClientLeftError, _client_left)
    app.add_exception_handler(ClientDisconnect, _client_left)  # before its body was whole
    app.add_exception_handler(Exception, _unexpected_error)


def error_reply(error: ServiceError) -> JSONResponse:
    """The reply for a refusal."""
    headers = {}
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.retry_after or RETRY_AFTER_SECONDS)
    return _reply(error.as_dict(), error.status, headers)


def _reply(error: Mapping[str, str | None], status: int, headers: Mapping[str, str] | None) -> JSONResponse:
    """The one shape. An error may repeat what it was sent, and half of a surrogate pair cannot be sent back."""
    told = {name: value and value.encode("utf-8", "backslashreplace").decode() for name, value in error.items()}
    return JSONResponse({"error": told}, status, headers)


async def _service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return error_reply(error)


def _refuse(problems: list[Problem]) -> JSONResponse:
    first, rest = problems[0], problems[1:]
    message = first.message
    if rest:
        message += " Also: " + " ".join(f"{p.pointer or '/'}: {p.message}" for p in rest[:5])
    return error_reply(InvalidInputError(message, code=first.code, param=first.pointer))


async def _spec_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpecError)
    return _refuse(list(error.problems))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems: list[Problem] = []
    in_body: list[dict[str, Any]] = []
    for one in error.errors():
        place, *location = one["loc"]
        if place == "body" and isinstance(error.body, bytes):
            refusal = UnsupportedMediaTypeError(
                f"The body's Content-Type is '{request.headers.get('content-type', '')}'; send application/json.",
                code="unsupported_media_type",
            )
            return error_reply(refusal)
        if one["type"] == "json_invalid":  # found before the route has asked who calls
            if (stranger := await _refusal_of_stranger(request)) is not None:
                return stranger
            # Of a body in JSON the location is how many characters were read.
            where = f"{one['ctx']['error']} (after character {location[0]})"
            (problem,) = explain([{**one, "loc": (), "ctx": {"error": where}}], None)
            return error_reply(BadRequestError(problem.message, code=problem.code))
        if place == "body":
            in_body.append({**one, "loc": tuple(location)})
        else:  # query, path, header: named, as there is no document to point into
            found = explain([{**one, "loc": tuple(location)}], dict.fromkeys(location))
            problems += [Problem(str(location[-1]) if location else str(place), p.message, p.code) for p in found]
    body = dict(error.body) if isinstance(error.body, Mapping) else error.body  # a form is no dict yet
    # Together: of the errors of a union's members, only those of the likeliest one are told.
    return _refuse([*problems, *explain(in_body, body)])


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # Which paths there are is told to those who hold a key.
    if error.status_code in (404, 405) and (refusal := await _refusal_of_stranger(request)) is not None:
        return refusal
    if error.status_code == 405:
        allowed = ", ".join(_methods_of(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        error.headers = {"Allow": allowed}
    return http_error_reply(request, error)


async def _refusal_of_stranger(request: Request) -> Response | None:
    """The 401 for a caller without a live key, where no route has asked for one; None for any other."""
    try:
        await authenticate_request(request)
    except ServiceError as refusal:
        return error_reply(refusal)
    return None


def _methods_of(request: Request) -> list[str]:
    """What a path answers. The router knows those of the first route alone that has this path."""
    if (item := request.app.openapi()["paths"].get(request.scope["path"])) is not None:
        found = [method.upper() for method in item]  # not those of a path with an id in this one's place
    else:
        routes, methods = request.app.routes, ("GET", "POST", "PUT", "PATCH", "DELETE")
        found = [m for m in methods if any(r.matches({**request.scope, "method": m})[0] is Match.FULL for r in routes)]
    return [*found, *(["HEAD"] if "GET" in found else []), "OPTIONS"]


def _too_large(request: Request) -> str:
    limit: int = request.scope[MAX_BODY_SIZE_SCOPE_KEY]  # the route's own, where it has one
    length = request.headers.get("content-length")
    setting, advice = (
        ("MINIMAND_MAX_BODY_BYTES", "Send what it holds in several calls; rows are uploaded as a dataset.")
        if limit == request.app.state.services.settings.max_body_bytes
        else ("MINIMAND_MAX_UPLOAD_BYTES", "Upload fewer rows, or leave out columns that are not needed.")
    )
    came = f"has {int(length):,} bytes, and none here may be" if length else "is"
    return f"The body {came} larger than {limit:,} bytes ({setting}). {advice}"


def http_error_reply(request: Request, error: HTTPException) -> JSONResponse:
    """The reply for what the framework itself refuses."""
    message, path = str(error.detail), request.scope["path"]
    code = CODES.get(error.status_code, "bad_request")
    if error.status_code == 400:  # it could not read a body
        code = "invalid_form" if request.headers.get("content-type", "").startswith(FORM_TYPE) else "invalid_json"
    elif error.status_code == 404:
        message = f"There is nothing at {path}. The paths are listed at /docs" + (
            ", and none ends with a slash."
            if path.endswith("/")
            else "; an id in one begins with its kind, as in job_…."
        )
    elif error.status_code == 405:
        message = f"{path} does not answer {request.method}."
    elif error.status_code == 413:
        message = _too_large(request)
    body = {
        "message": message,
        "type": "not_found_error" if error.status_code == 404 else "invalid_request_error",
        "param": None,
        "code": code,
    }
    return _reply(body, error.status_code, error.headers)


async def _os_error(_request: Request, error: Exception) -> JSONResponse:
    if not is_disk_full(error):
        raise error
    log.error("there is no room on the disk: %s", error)
    return error_reply(
        UnavailableError(
            "There is no room on the server's disk. Nothing was changed; repeat the request once there is.",
            code="disk_full",
            retry_after=60,
        )
    )


async def _unicode_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UnicodeEncodeError)
    half = error.object[error.start]
    if not "\ud800" <= half <= "\udfff":
        raise error
    # JSON can write it, but nothing can store or repeat it. A check that stumbles over it cannot say where it stands.
    message = f"The request holds {half}, half of a surrogate pair, which is no character. Remove it."
    return error_reply(InvalidInputError(message, code="invalid_value"))


async def _client_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    log.error("unhandled error in %s %s", request.method, request.url.path, exc_info=error)
    body = {
        "message": "The service failed on this request. The fault is logged under the x-request-id of this reply.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    # This handler runs outside every middleware, so it sets the id itself.
    headers = {"x-request-id": request_id} if (request_id := request.scope.get("request_id")) else None
    return _reply(body, 500, headers)
