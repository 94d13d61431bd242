"""/v1/losses."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.errors import NotFoundError
from app.http.auth import Authenticated, needs
from app.http.pagination import InItsOrder, Page, page_of
from app.losses.schemas import LossBody, loss_body
from ml.specs.errors import did_you_mean
from ml.specs.losses.base import TaskType
from ml.specs.losses.table import LOSS_SPECS

router = APIRouter(prefix="/v1/losses", tags=["losses"], dependencies=[needs(None)])


@router.get("", summary="List the losses")
def list_losses(
    _caller: Authenticated,
    page: InItsOrder,
    task: Annotated[TaskType | None, Query(description="Only those for this task.")] = None,
) -> Page[LossBody]:
    """Every loss a job may ask for: its formula, its paper, its schema, its defaults, and an example that runs."""
    bodies = [loss_body(name, spec) for name, spec in LOSS_SPECS.items() if task is None or task in spec.tasks()]
    return Page[LossBody].model_validate(page_of(bodies, page))


@router.get("/{loss_type}", summary="Get a loss")
def get_loss(
    loss_type: Annotated[str, Path(description="The loss's `type`, e.g. focal.")], _caller: Authenticated
) -> LossBody:
    """One loss."""
    if loss_type not in LOSS_SPECS:
        hint = did_you_mean(loss_type, LOSS_SPECS)
        raise NotFoundError(f"There is no loss '{loss_type}'.{hint}", code="loss_not_found")
    return loss_body(loss_type, LOSS_SPECS[loss_type])
