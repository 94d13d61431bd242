"""The OpenAPI document: what FastAPI makes of the routes, and what holds for every route of a kind, said once.

A new route gets its short operationId, its refusals and the headers of its replies by being there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.http.path_ids import PREFIXES, id_pattern

ERROR_BODY = {"$ref": "#/components/schemas/ErrorBody"}
FORM_TYPE = "multipart/form-data"
FILE_SCHEMA = {"type": "string", "format": "binary"}
METHODS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True)
class Operation:
    """A route in the document, and what it may refuse for."""

    path: str
    method: str
    body: dict[str, Any]

    @property
    def needs_key(self) -> bool:
        """Not so of health checks."""
        return bool(self.body.get("security"))

    @property
    def has_body(self) -> bool:
        """Whether a request carries one."""
        return "requestBody" in self.body

    @property
    def has_input(self) -> bool:
        """Whether a request says anything but its path."""
        return self.has_body or bool(self.body.get("parameters"))

    @property
    def names_a_thing(self) -> bool:
        """Whether its path holds an id or a name."""
        return "{" in self.path

    @property
    def acts_on_a_thing(self) -> bool:
        """Whether what it does may be forbidden by a thing's state."""
        return self.names_a_thing and self.method in ("post", "delete")


@dataclass(frozen=True)
class Refusal:
    """A status of 4xx or 5xx: what it means, an example of its error, and which operations may give it."""

    description: str
    example: dict[str, str | None]
    is_of: Callable[[Operation], bool]


def _error(message: str, code: str, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


REFUSALS = {
    "400": Refusal(
        "The body is not the JSON, or not the form, that it says it is.",
        _error("the body is not JSON: Expecting value (after character 12).", "invalid_json"),
        lambda operation: operation.has_body,
    ),
    "401": Refusal(
        "No API key, or one that opens nothing.",
        _error(
            "This call needs an API key: send the header 'Authorization: Bearer KEY'. The page /docs needs none.",
            "missing_api_key",
            "authentication_error",
        ),
        lambda operation: operation.needs_key,
    ),
    "403": Refusal(
        "The API key is not for calls of this kind.",
        _error("This API key has no scope for this call.", "missing_scope", "permission_error"),
        lambda operation: operation.needs_key,
    ),
    "404": Refusal(
        "The project has no such thing.",
        _error("There is no dataset 'ds_019a8f3c2b7e5f0a1b2c3d4e5f60718'.", "dataset_not_found", "not_found_error"),
        lambda operation: operation.names_a_thing,
    ),
    "408": Refusal(
        "The request came too slowly.",
        _error("The request came too slowly. Nothing was done; send it again over a faster line.", "request_too_slow"),
        lambda operation: operation.has_body,
    ),
    "409": Refusal(
        "The thing is in a state that forbids what was asked.",
        _error(
            "Job 'job_019a8f3c2b7e5f0a1b2c3d4e5f60718' is succeeded and cannot be cancelled.",
            "illegal_transition",
            "conflict_error",
        ),
        lambda operation: operation.acts_on_a_thing,
    ),
    "413": Refusal(
        "The body is larger than one may be.",
        _error(
            "The body has 1,204,311 bytes, and none here may be larger than 1,000,000 bytes (MINIMAND_MAX_BODY_BYTES). "
            "Send what it holds in several calls; rows are uploaded as a dataset.",
            "body_too_large",
        ),
        lambda operation: operation.has_body,
    ),
    "415": Refusal(
        "The body's Content-Type is not the one that this route reads.",
        _error("The body's Content-Type is 'text/plain'; send application/json.", "unsupported_media_type"),
        lambda operation: operation.has_body,
    ),
    "422": Refusal(
        "The request was read, and cannot be carried out: `param` says which part of it, `message` what would do.",
        _error("unknown loss 'focl'. Did you mean 'focal'?", "unknown_type", param="/loss/type"),
        lambda operation: operation.has_input,
    ),
    "429": Refusal(
        "More was asked than is taken at once: come again after `Retry-After` seconds.",
        _error(
            "This project may use 6,000 requests a minute, and has 0 left. Send this again in 1 s.",
            "rate_limit_exceeded",
            "rate_limit_error",
        ),
        lambda operation: operation.needs_key,
    ),
    "500": Refusal(
        "The service failed; its log tells why, under the reply's `x-request-id`.",
        _error(
            "The service failed on this request. The fault is logged under the x-request-id of this reply.",
            "internal_error",
            "server_error",
        ),
        lambda _operation: True,
    ),
    "503": Refusal(
        "Nothing is wrong with the request: come again after `Retry-After` seconds.",
        _error("The database cannot be reached.", "database_unavailable", "unavailable_error"),
        lambda operation: operation.path != "/healthz",
    ),
}

HEADERS = {
    "x-request-id": ("Of this request, in the log too: the caller's own where that is a plain word.", "string"),
    "Location": ("The path of what was made.", "string"),
    "WWW-Authenticate": ("Bearer.", "string"),
    "Retry-After": ("Seconds.", "integer"),
}
_HEADERS_OF_STATUS = {"201": ["Location"], "401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}


class DocumentedAPI(FastAPI):
    """FastAPI, with a whole document."""

    def openapi(self) -> dict[str, Any]:
        """See the module."""
        if self.openapi_schema is None:
            self.openapi_schema = _complete(super().openapi())
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """The name of the route's function, which generated clients name theirs by."""
    return route.name


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """Every operation of a document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield Operation(path, method, item[method])


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document["components"]
    _suit_generators(components["schemas"])
    components["headers"] = {
        name: {"description": description, "required": True, "schema": {"type": kind}}
        for name, (description, kind) in HEADERS.items()
    }
    components["examples"] = {status: {"value": {"error": one.example}} for status, one in REFUSALS.items()}
    for operation in operations(document):
        if (form := operation.body.get("requestBody", {}).get("content", {}).get(FORM_TYPE)) is not None:
            # Unknown fields of a form are refused, which the framework cannot say.
            fields = components["schemas"][form["schema"]["$ref"].rpartition("/")[2]]
            fields["additionalProperties"] = False
            for field in fields["properties"].values():
                _leave_out_null(field)
        for parameter in operation.body.get("parameters", ()):
            schema = parameter["schema"]
            _leave_out_null(schema)
            if parameter["in"] == "header" and schema["type"] == "array":  # its lines are read as one with commas
                parameter["schema"] = schema | {
                    "type": "string",
                    "examples": [", ".join(e) for e in schema["examples"]],
                }
                del parameter["schema"]["items"]
            if parameter["in"] == "path" and parameter["name"].endswith("_id"):
                thing = parameter["name"].removesuffix("_id").replace("_", " ")
                parameter.setdefault("description", f"Id of the {thing}.")
                if (prefix := PREFIXES.get(parameter["name"])) is not None:  # the framework doesn't tell of its type
                    parameter["schema"]["pattern"] = f"^{id_pattern(prefix)}$"
        responses = operation.body["responses"]
        if not operation.has_input:  # the framework declares it of every route alike
            responses.pop("422", None)
        for status, refusal in REFUSALS.items():
            if status in responses or refusal.is_of(operation):
                _describe(responses.setdefault(status, {}), status, refusal)
        for status, response in responses.items():
            named = ["x-request-id", *_HEADERS_OF_STATUS.get(status, ())]
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in named}
        operation.body["responses"] = dict(sorted(responses.items()))
    return document


def _leave_out_null(schema: dict[str, Any]) -> None:
    """What need not be given is left out of a URL, a header or a form, in which a null cannot be written."""
    if (members := schema.pop("anyOf", None)) is not None:
        (member,) = (one for one in members if one != {"type": "null"})
        schema.update(member)


def _suit_generators(node: Any) -> None:
    """Where a bare name may stand for an object, the default is told by its name: generators take no objects there. Nor
    do they know a file by `contentMediaType` alone.
    """
    if isinstance(node, dict):
        if "contentMediaType" in node:
            node["format"] = FILE_SCHEMA["format"]
        default, members = node.get("default"), node.get("anyOf", ())
        if isinstance(default, dict) and any(default.get("type") in one.get("enum", ()) for one in members):
            node["default"] = default["type"]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _suit_generators(child)


# What the framework says of a response that a route declares without words of its own.
_PLAIN_DESCRIPTIONS = frozenset(
    (
        "Bad Request",
        "Unauthorized",
        "Forbidden",
        "Not Found",
        "Conflict",
        "Content Too Large",
        "Request Entity Too Large",
        "Unsupported Media Type",
        "Unprocessable Content",
        "Unprocessable Entity",
        "Too Many Requests",
        "Service Unavailable",
    )
)


def _describe(response: dict[str, Any], status: str, refusal: Refusal) -> None:
    """Fill in what a route's own declaration leaves open: a health check refuses with a body of its own, too."""
    if response.get("description", "") in _PLAIN_DESCRIPTIONS | {""}:
        response["description"] = refusal.description
    content = response.setdefault("content", {}).setdefault("application/json", {})
    own = content.get("schema", ERROR_BODY)
    content["schema"] = own if own == ERROR_BODY else {"anyOf": [own, ERROR_BODY]}
    content["examples"] = {"error": {"$ref": f"#/components/examples/{status}"}}
