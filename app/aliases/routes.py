"""/v1/aliases."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from app.aliases.schemas import Alias, AliasChange, AliasRequest
from app.http.auth import Authenticated, needs
from app.http.errors import ErrorBody
from app.http.examples import ALIASES
from app.http.pagination import NewestFirst, Page
from app.http.services import Wired

router = APIRouter(prefix="/v1/aliases", tags=["aliases"], dependencies=[needs("jobs")])

AliasName = Annotated[
    str, Path(description="A name of yours: letters, digits, '.', '_' and '-'.", examples=["production"])
]


@router.get("", summary="List aliases")
def list_aliases(caller: Authenticated, services: Wired, page: NewestFirst) -> Page[Alias]:
    """The project's aliases, the newest first."""
    rows, has_more = services.aliases.list_page(caller.project_id, page)
    return Page[Alias].model_validate(page.page([Alias.of(row) for row in rows], has_more=has_more))


@router.put(
    "/{name}",
    summary="Point an alias at a model",
    responses={
        201: {"model": Alias, "description": "The alias is new"},
        503: {"model": ErrorBody, "description": "The model cannot be served; the alias is as it was"},
    },
)
def put_alias(
    name: AliasName,
    asked: Annotated[AliasRequest, Body(openapi_examples=ALIASES)],
    caller: Authenticated,
    services: Wired,
    response: Response,
) -> Alias:
    """From now on the name stands for this model: predictions in progress end on the one before, later ones come from
    this one, here at once and on every replica within 2 seconds, or as soon as it has loaded it. A prediction's `model`
    is the id of the one that answered.
    """
    row, is_new = services.aliases.put(caller, name, asked.model)
    if is_new:
        response.status_code = 201
        response.headers["Location"] = f"/v1/aliases/{name}"
    return Alias.of(row)


@router.get("/{name}", summary="Get an alias")
def get_alias(name: AliasName, caller: Authenticated, services: Wired) -> Alias:
    """What a name stands for."""
    return Alias.of(services.aliases.get(caller.project_id, name))


@router.get("/{name}/history", summary="List what an alias has stood for")
def list_alias_history(name: AliasName, caller: Authenticated, services: Wired, page: NewestFirst) -> Page[AliasChange]:
    """Every change with its time and API key, the newest first; of an alias that was deleted, too."""
    rows, has_more = services.aliases.history(caller.project_id, name, page)
    return Page[AliasChange].model_validate(page.page([AliasChange.of(row) for row in rows], has_more=has_more))


@router.delete("/{name}", status_code=204, summary="Delete an alias")
def delete_alias(name: AliasName, caller: Authenticated, services: Wired) -> Response:
    """The name stands for nothing; its model and its history stay."""
    services.aliases.delete(caller, name)
    return Response(status_code=204)
