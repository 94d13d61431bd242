"""create_app(): builds the services and mounts the routes. Wiring, nothing else."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.aliases.routes import router as alias_routes
from app.aliases.service import AliasService
from app.audit.routes import router as audit_routes
from app.audit.service import AuditService
from app.base_models.routes import router as base_model_routes
from app.base_models.service import BaseModelService
from app.census import Censuses
from app.datasets.routes import router as dataset_routes
from app.datasets.service import DatasetService
from app.db.session import Database
from app.http.body_limit import BodyLimitMiddleware
from app.http.connection_limit import ConnectionLimitMiddleware
from app.http.docs import DESCRIPTION, TAGS, install_docs
from app.http.errors import ErrorBody, install_error_handlers
from app.http.head import HeadMiddleware
from app.http.health import look_at_parts
from app.http.health import router as health_routes
from app.http.limits import RateLimitMiddleware
from app.http.metrics import Metrics
from app.http.metrics import router as metrics_routes
from app.http.openapi import DocumentedAPI, operation_id
from app.http.request_id import RequestIdMiddleware
from app.http.request_metrics import RequestMetricsMiddleware
from app.http.services import Services
from app.http.slow_clients import end_slow_clients
from app.jobs.bulk_routes import evaluations, prediction_batches
from app.jobs.comparison_routes import router as comparison_routes
from app.jobs.reconciler import Reconciler
from app.jobs.routes import router as job_routes
from app.jobs.service import JobService
from app.jobs.stream import EventLooks
from app.keys.routes import router as key_routes
from app.keys.service import KeyService, KeyUses
from app.limits.rates import RateBuckets
from app.limits.service import LimitService
from app.losses.routes import router as loss_routes
from app.models.routes import router as model_routes
from app.models.service import ModelService
from app.periodic import Periodic
from app.predictions.routes import router as prediction_routes
from app.predictions.served import ServedModels, Watch
from app.predictions.service import PredictionService
from app.predictions.shortcut import PredictionShortcut
from app.projects.routes import router as project_routes
from app.projects.service import ProjectService
from app.queue import JobQueue
from app.retention import Retention, Sweeper
from app.settings import Settings
from app.shared_look import SharedLook
from app.storage import FileStore
from ml.cores import usable_cores
from ml.inference.backends import open_engine
from ml.inference.cache import ModelCache

VERSION = "0.1.0"


def build_services(settings: Settings) -> Services:
    """Everything a serving process is made of."""
    database = Database(settings.resolved_database_url)
    store = FileStore(settings.resolved_storage_url, settings.home.resolve() / "cache")
    base_models = BaseModelService(settings.base_folders)
    limits = LimitService(RateBuckets(settings.broker_url), settings.default_limits)
    datasets = DatasetService(database, store, settings, limits)
    models = ModelService(database, store, settings.scratch)
    engine = open_engine(settings.inference_device, settings.inference_threads or usable_cores())
    cache = ModelCache(settings.model_cache_bytes, engine)
    served = ServedModels(models, cache, settings.preload)
    metrics = Metrics(VERSION)
    predictions = PredictionService(
        served,
        passes=engine.passes,
        max_waiting_texts=settings.max_waiting_texts,
        answer_cache_bytes=settings.answer_cache_bytes,
        observer=metrics,
    )
    metrics.watch(predictions, cache, served)
    queue = JobQueue(settings.broker_url)
    return Services(
        settings=settings,
        database=database,
        store=store,
        queue=queue,
        keys=KeyService(database),
        projects=ProjectService(database),
        limits=limits,
        audit=AuditService(database),
        base_models=base_models,
        datasets=datasets,
        jobs=JobService(
            database,
            queue,
            datasets,
            base_models,
            models,
            limits=limits,
            training_queue=settings.training_queue,
            trainer_memory_bytes=settings.trainer_memory_bytes,
        ),
        models=models,
        served=served,
        aliases=AliasService(database, models, base_models, served),
        predictions=predictions,
        metrics=metrics,
    )


def create_app(settings: Settings, *, role: str = "api") -> FastAPI:
    """The web application. role: api for everything, inference for predictions alone."""
    services = build_services(settings)
    rounds: list[Periodic] = [Watch(services.served), KeyUses(services.keys)]
    parts = SharedLook("parts", lambda: look_at_parts(services))
    services.metrics.watch_parts(parts.newest_now)
    if role == "api":
        services.metrics.watch_rows(Censuses(services.database, settings).newest)
        retention = Retention(services.database, services.store, settings)
        rounds += [
            Reconciler(services.database, services.queue, settings),
            Sweeper(retention, settings.home.resolve()),
        ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        for one in rounds:
            one.start()
        if role == "api":
            # Uploads are spooled here: the system's own temp folder may lie in memory.
            spool = settings.scratch / "spool"
            spool.mkdir(parents=True, exist_ok=True)
            tempfile.tempdir = str(spool)
        watching = asyncio.create_task(
            end_slow_clients(app.state.connections, settings.request_grace_seconds, settings.request_bytes_per_second)
        )
        yield
        watching.cancel()
        for one in rounds:
            one.stop()
        services.predictions.close()
        services.limits.close()
        services.served.close()
        services.database.close()

    app = DocumentedAPI(
        title="Minimand",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # The spans of requests alone (app/tracing.py): /metrics has the metrics, and its logs hold messages of faults.
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "auto_configure": False},
        responses={422: {"model": ErrorBody}},  # in place of the framework's own; the others: app.http.openapi
        generate_unique_id_function=operation_id,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.parts, app.state.event_looks = parts, EventLooks(services.jobs)
    app.state.connections, app.state.max_connections = (), 0  # of its server, which tells later
    app.add_middleware(BodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(RateLimitMiddleware)
    app.add_middleware(
        PredictionShortcut,
        keys=services.keys,
        predictions=services.predictions,
        limits=services.limits,
        metrics=services.metrics,
        max_body_bytes=settings.max_body_bytes,
    )
    app.add_middleware(ConnectionLimitMiddleware)
    app.add_middleware(RequestMetricsMiddleware, metrics=services.metrics)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestIdMiddleware)  # added last, and so the outermost
    install_error_handlers(app)
    install_docs(app)
    app.include_router(prediction_routes)
    app.include_router(health_routes)
    app.include_router(metrics_routes)
    if role == "api":
        app.include_router(dataset_routes(settings))
        app.include_router(loss_routes)
        app.include_router(base_model_routes)
        app.include_router(job_routes)
        app.include_router(comparison_routes)
        app.include_router(prediction_batches)
        app.include_router(evaluations)
        app.include_router(model_routes)
        app.include_router(alias_routes)
        app.include_router(key_routes)
        app.include_router(project_routes)
        app.include_router(audit_routes)
    return app
