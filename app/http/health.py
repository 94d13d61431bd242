"""Is the process alive, and can it work? Open to everyone, and telling nothing else."""

import shutil
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.errors import UnavailableError
from app.http.errors import RETRY_AFTER_SECONDS
from app.http.services import Services
from app.jobs.reconciler import ABSENT_AFTER_ROUNDS
from app.jobs.repository import served_queues

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Parts(BaseModel):
    """Each part of the service, and how it is."""

    database: Literal["ok", "unreachable"]
    storage: Literal["ok", "unreachable"] = Field(description="Whether a file can be written.")
    broker: Literal["ok", "unreachable", "none"] = Field(description="none: none is set; workers look by themselves.")
    worker: Literal["ok", "none", "unknown"] = Field(description="Whether one lives that takes new trainings.")
    models: Literal["ok", "loading", "missing"] = Field(
        description="Those of MINIMAND_PRELOAD. missing: one is not there, or cannot be served; the log says which."
    )
    disk: Literal["ok", "low"] = Field(description="Space under this process's home, by MINIMAND_MIN_FREE_BYTES.")


class Readiness(BaseModel):
    """ok; degraded, where something waits or soon will; starting, while models load; unwell, where requests fail."""

    status: Literal["ok", "degraded", "starting", "unwell"]
    parts: Parts


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Always ok while the process answers."""
    return Health()


@router.get("/readyz", summary="Can the process work?", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response) -> Readiness:
    """503 while the database or the file store cannot be used, and until the models to preload are loaded.

    Another part that is unwell makes the status `degraded`, with 200: without a broker a job waits for a worker's next
    look, without a worker until there is one.
    """
    parts = await request.app.state.parts.newest()
    if "unreachable" in (parts.database, parts.storage):
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return Readiness(status="unwell", parts=parts)
    if parts.models == "loading":
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return Readiness(status="starting", parts=parts)
    is_well = parts.broker != "unreachable" and (parts.worker, parts.models, parts.disk) == ("ok", "ok", "ok")
    return Readiness(status="ok" if is_well else "degraded", parts=parts)


def look_at_parts(services: Services) -> Parts:
    """How each part is, as far as this process can tell."""
    queues = _served_queues(services)
    return Parts(
        database="unreachable" if queues is None else "ok",
        storage="ok" if services.store.is_writable() else "unreachable",
        broker=services.queue.health(),
        worker="unknown" if queues is None else "ok" if services.settings.training_queue in queues else "none",
        models=services.served.preload,
        disk="ok" if _free_bytes(services.settings.home) >= services.settings.min_free_bytes else "low",
    )


def _served_queues(services: Services) -> set[str] | None:
    """The queues that living workers claim from; None where the database does not say."""
    absent_seconds = ABSENT_AFTER_ROUNDS * services.settings.poll_seconds
    try:
        with services.database.read() as session:
            return served_queues(session, seen_since=services.database.now - absent_seconds)
    except UnavailableError:
        return None


def _free_bytes(folder: Path) -> int:
    """On the disk of a folder, which need not be there yet."""
    path = folder.resolve()
    return shutil.disk_usage(next(part for part in (path, *path.parents) if part.exists())).free
