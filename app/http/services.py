"""The services a process is made of, and how a route gets at them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

if TYPE_CHECKING:
    from app.aliases.service import AliasService
    from app.audit.service import AuditService
    from app.base_models.service import BaseModelService
    from app.datasets.service import DatasetService
    from app.db.session import Database
    from app.http.metrics import Metrics
    from app.jobs.service import JobService
    from app.keys.service import KeyService
    from app.limits.service import LimitService
    from app.models.service import ModelService
    from app.predictions.served import ServedModels
    from app.predictions.service import PredictionService
    from app.projects.service import ProjectService
    from app.queue import JobQueue
    from app.settings import Settings
    from app.storage import FileStore


@dataclass(frozen=True)
class Services:
    """One of each, built in `app.main` and nowhere else."""

    settings: "Settings"
    database: "Database"
    store: "FileStore"
    queue: "JobQueue"
    keys: "KeyService"
    projects: "ProjectService"
    limits: "LimitService"
    audit: "AuditService"
    base_models: "BaseModelService"
    datasets: "DatasetService"
    jobs: "JobService"
    models: "ModelService"
    served: "ServedModels"
    aliases: "AliasService"
    predictions: "PredictionService"
    metrics: "Metrics"


async def _services(request: Request) -> Services:  # async: the framework runs what is not in a thread
    services: Services = request.app.state.services
    return services


Wired = Annotated[Services, Depends(_services)]
