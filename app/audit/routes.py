"""/v1/audit."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.audit.schemas import Change
from app.http.auth import Authenticated, needs
from app.http.pagination import NewestFirst, Page
from app.http.services import Wired

router = APIRouter(prefix="/v1/audit", tags=["keys and projects"], dependencies=[needs("admin")])


@router.get("", summary="List changes")
def list_changes(
    caller: Authenticated,
    services: Wired,
    page: NewestFirst,
    action: Annotated[str | None, Query(description="One kind of change, e.g. key.revoked.")] = None,
    target: Annotated[str | None, Query(description="Id of what was changed, or an alias's name.")] = None,
    key: Annotated[str | None, Query(description="Id of the key that asked for it.")] = None,
) -> Page[Change]:
    """What was changed in the project and by which key, the newest first. It is written with the change or not at all,
    and stays when what was changed is gone.
    """
    wanted = {"action": action, "target": target, "key_id": key}
    filters = {name: value for name, value in wanted.items() if value is not None}
    rows, has_more = services.audit.list_page(caller.project_id, page, filters)
    return Page[Change].model_validate(page.page([Change.of(row) for row in rows], has_more=has_more))
