"""GET /v1/base_models."""

from fastapi import APIRouter

from app.base_models.schemas import BaseModelBody
from app.http.auth import Authenticated, needs
from app.http.pagination import InItsOrder, Page, page_of
from app.http.services import Wired

router = APIRouter(prefix="/v1/base_models", tags=["base models"], dependencies=[needs(None)])


@router.get("", summary="List the base models")
def list_base_models(_caller: Authenticated, services: Wired, page: InItsOrder) -> Page[BaseModelBody]:
    """Every encoder a job may start from. `minilm` is always there; an operator registers others by name."""
    found = services.base_models.list()
    bodies = [BaseModelBody(id=facts.name, **facts.model_dump(exclude={"name"})) for facts in found]
    return Page[BaseModelBody].model_validate(page_of(bodies, page))
