"""/v1/keys."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from app.http.auth import Authenticated, needs
from app.http.examples import KEYS, ROTATIONS
from app.http.idempotency import IdempotencyKey
from app.http.pagination import NewestFirst, Page
from app.http.services import Wired
from app.keys.schemas import Key, KeyRequest, NewKey, RotationRequest

router = APIRouter(prefix="/v1/keys", tags=["keys and projects"])
ADMIN = [needs("admin")]
_A_DAY = RotationRequest()


@router.post("", status_code=201, summary="Make an API key", dependencies=ADMIN)
def create_key(
    asked: Annotated[KeyRequest, Body(openapi_examples=KEYS)],
    caller: Authenticated,
    services: Wired,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> NewKey:
    """A key of your project, for what its scopes name. The reply holds the secret, which is shown this once."""
    row, secret = services.keys.create(caller, asked, idempotency_key)
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return NewKey.made(row, secret)


@router.get("", summary="List API keys", dependencies=ADMIN)
def list_keys(caller: Authenticated, services: Wired, page: NewestFirst) -> Page[Key]:
    """The project's keys, the newest first; revoked and expired ones too."""
    rows, has_more = services.keys.list_page(caller.project_id, page)
    return Page[Key].model_validate(page.page([Key.of(row) for row in rows], has_more=has_more))


@router.get("/current", summary="Which key is this", dependencies=[needs(None)])
def get_current_key(caller: Authenticated, services: Wired) -> Key:
    """The key that this very call was made with: its project, its scopes, when it ends. Any key may ask."""
    return Key.of(services.keys.get(caller.project_id, caller.key_id))


@router.get("/{key_id:key}", summary="Get an API key", dependencies=ADMIN)
def get_key(key_id: str, caller: Authenticated, services: Wired) -> Key:
    """A key, without its secret."""
    return Key.of(services.keys.get(caller.project_id, key_id))


@router.post("/{key_id:key}/rotate", status_code=201, summary="Replace an API key", dependencies=ADMIN)
def rotate_key(
    key_id: str,
    caller: Authenticated,
    services: Wired,
    response: Response,
    asked: Annotated[RotationRequest, Body(openapi_examples=ROTATIONS)] = _A_DAY,
    idempotency_key: IdempotencyKey = None,
) -> NewKey:
    """A new key with the same name, scopes, limits and end. The old one works beside it for `overlap_seconds`, so that
    who uses it can change over without a pause. 409 for a key that lives no more.
    """
    row, secret = services.keys.rotate(caller, key_id, asked, idempotency_key)
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return NewKey.made(row, secret)


@router.delete("/{key_id:key}", status_code=204, summary="Revoke an API key", dependencies=ADMIN)
def revoke_key(key_id: str, caller: Authenticated, services: Wired) -> Response:
    """The key opens nothing any more: here at once, on every other process within 2 seconds. It stays listed. 409 for
    the project's last key with the scope `admin`.
    """
    services.keys.revoke(caller, key_id)
    return Response(status_code=204)
