"""`python -m workers`: a worker. Slots claim and run jobs; Celery rings; one thread reconciles, one sweeps."""

import logging
import os
import sys

from app.db.migrate import SchemaError, require_current
from app.db.session import Database
from app.jobs.reconciler import Presence, Reconciler
from app.logs import configure_logging
from app.queue import JobQueue
from app.retention import Retention, Sweeper
from app.settings import Settings
from app.storage import FileStore
from app.tracing import TracingUnavailableError, configure_tracing
from workers.celery_app import make_worker_app, serve
from workers.devices import BULK_SLOT, SHORT_SLOT, plan_slots, visible_gpus
from workers.runner import Runner
from workers.slots import Slots
from workers.spares import Spares

log = logging.getLogger("workers")


def main() -> int:
    """Run until asked to end; then every trainer writes a checkpoint first."""
    settings = Settings()
    configure_logging(settings)
    if settings.broker_url is None:
        sys.stderr.write("A worker needs a broker: set MINIMAND_BROKER_URL, or start everything with `minimand up`.\n")
        return 1
    try:
        configure_tracing(settings, "worker")
    except TracingUnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    database = Database(settings.resolved_database_url)
    try:
        require_current(database)
    except SchemaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    store = FileStore(settings.resolved_storage_url, settings.home.resolve() / "cache")
    queue = JobQueue(settings.broker_url)
    plan = [*plan_slots(settings.devices, list_gpus=visible_gpus), SHORT_SLOT]
    kept = [slot.environment for slot in plan] if settings.spare_trainers else []
    spares = Spares(kept, settings.home.resolve(), nice=settings.trainer_nice)
    slots = Slots([*plan, BULK_SLOT], database, Runner(database, store, settings, spares), queue, settings, spares)
    reconciler = Reconciler(database, queue, settings, Presence(f"{slots.host}:{os.getpid()}", slots.queues))
    retention = Retention(database, store, settings)
    sweeper = Sweeper(retention, settings.home.resolve())
    slots.take_back()
    reconciler.run_once()
    for removed in retention.sweep_runs():
        log.info("removed %s", removed)
    slots.start()
    reconciler.start()
    sweeper.start()
    log.info("ready: %s", ", ".join(slots.names))
    try:
        # Celery exits by SystemExit; whatever ends it, the slots are stopped and waited for.
        serve(make_worker_app(settings.broker_url, slots.ring, slots.stop), slots.queues)
    finally:
        slots.stop()
        spares.stop()
        slots.join()
        reconciler.stop()
        sweeper.stop()
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
