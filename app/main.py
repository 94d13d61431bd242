"""create_app(): builds the services and mounts the routes. Wiring, nothing else."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.aliases.routes import router as alias_routes
from app.aliases.service import AliasService
from app.base_models.routes import router as base_model_routes
from app.base_models.service import BaseModelService
from app.datasets.routes import router as dataset_routes
from app.datasets.service import DatasetService
from app.db.session import Database
from app.http.body_limit import BodyLimitMiddleware
from app.http.connection_limit import ConnectionLimitMiddleware
from app.http.docs import DESCRIPTION, TAGS, install_docs
from app.http.errors import ErrorBody, install_error_handlers
from app.http.head import HeadMiddleware
from app.http.health import router as health_routes
from app.http.metrics import Metrics
from app.http.metrics import router as metrics_routes
from app.http.openapi import DocumentedAPI, operation_id
from app.http.request_id import RequestIdMiddleware
from app.http.services import Services
from app.jobs.bulk_routes import evaluations, prediction_batches
from app.jobs.comparison_routes import router as comparison_routes
from app.jobs.reconciler import Reconciler
from app.jobs.routes import router as job_routes
from app.jobs.service import JobService
from app.keys.service import KeyService
from app.losses.routes import router as loss_routes
from app.models.routes import router as model_routes
from app.models.service import ModelService
from app.periodic import Periodic
from app.predictions.routes import router as prediction_routes
from app.predictions.served import ServedModels, Watch
from app.predictions.service import PredictionService
from app.predictions.shortcut import PredictionShortcut
from app.queue import JobQueue
from app.retention import Retention, Sweeper
from app.settings import Settings
from app.storage import FileStore
from ml.cores import usable_cores
from ml.inference.cache import ModelCache


def build_services(settings: Settings) -> Services:
    """Everything a serving process is made of."""
    database = Database(settings.resolved_database_url)
    store = FileStore(settings.resolved_storage_url, settings.home.resolve() / "cache")
    base_models = BaseModelService(settings.base_models)
    datasets = DatasetService(database, store, settings)
    models = ModelService(database, store, settings.scratch)
    threads = settings.inference_threads or usable_cores()
    cache = ModelCache(settings.model_cache_bytes, threads)
    served = ServedModels(models, cache, settings.preload)
    metrics = Metrics()
    predictions = PredictionService(
        served,
        threads=threads,
        max_waiting_texts=settings.max_waiting_texts,
        answer_cache_bytes=settings.answer_cache_bytes,
        observer=metrics,
    )
    metrics.watch(predictions, cache)
    queue = JobQueue(settings.broker_url)
    return Services(
        settings=settings,
        database=database,
        store=store,
        queue=queue,
        keys=KeyService(database),
        base_models=base_models,
        datasets=datasets,
        jobs=JobService(
            database,
            queue,
            datasets,
            base_models,
            models,
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
    rounds: list[Periodic] = [Watch(services.served)]
    if role == "api":
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
        yield
        for one in rounds:
            one.stop()
        services.predictions.close()
        services.served.close()
        services.database.close()

    app = DocumentedAPI(
        title="Minimand",
        version="0.1.0",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={422: {"model": ErrorBody}},  # in place of the framework's own; the others: app.http.openapi
        generate_unique_id_function=operation_id,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.connections, app.state.max_connections = (), 0  # of its server, which tells later
    app.add_middleware(BodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(
        PredictionShortcut,
        keys=services.keys,
        predictions=services.predictions,
        metrics=services.metrics,
        max_body_bytes=settings.max_body_bytes,
    )
    app.add_middleware(ConnectionLimitMiddleware)
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
    return app
