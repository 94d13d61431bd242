"""Is the process alive, and can it work? Open to everyone, and telling nothing else."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy import text

from app.errors import UnavailableError
from app.http.services import Wired

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Each part the process needs, and how it is."""

    status: Literal["ok", "unwell"]
    parts: dict[str, str]


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Always ok while the process answers."""
    return Health()


@router.get("/readyz", summary="Can the process work?", responses={503: {"model": Readiness}})
def readyz(services: Wired, response: Response) -> Readiness:
    """503 while the database cannot be reached. A broker that is down delays jobs by a worker's poll, and no more."""
    parts = {"database": "ok", "broker": services.queue.health()}
    try:
        with services.database.read() as session:
            session.execute(text("SELECT 1"))
    except UnavailableError:
        parts["database"] = "unreachable"
    is_ready = parts["database"] == "ok"
    response.status_code = 200 if is_ready else 503
    return Readiness(status="ok" if is_ready else "unwell", parts=parts)
