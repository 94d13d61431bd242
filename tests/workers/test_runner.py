"""One run: what it leaves in rows and files, and what its threads write of it. Most need no trainer."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from app.errors import UnavailableError
from app.jobs import repository
from app.jobs.repository import Claim, LostClaimError
from app.logs import TextFormatter, log_about
from app.settings import Settings
from app.storage import FileStore
from tests.service import AppHouse, all_items, submit, tickets, tiny_base, tiny_spec, upload
from workers.devices import SHORT_SLOT, Slot
from workers.runner import Runner, _Run
from workers.spares import Spares


class DatabaseThatIsAway:
    now = 0.0

    @contextmanager
    def write(self) -> Iterator[None]:
        raise UnavailableError("away", code="database_unavailable")
        yield


class Run(_Run):
    """Waits for its lease to be lost in the place of a trainer."""

    def run_child(self, stopping: Any) -> None:
        while not self.is_lost:
            time.sleep(0.01)
        raise LostClaimError(self.claim.job_id)


def test_the_thread_that_renews_the_lease_logs_about_the_same_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: Any = Settings(home=tmp_path, lease_seconds=0.2)
    anything: Any = DatabaseThatIsAway()
    claim = Claim("job_1", 2)
    caplog.handler.setFormatter(TextFormatter())

    def run() -> None:
        log_about(job_id=claim.job_id, fence=claim.fence)
        Run(anything, anything, settings, anything, {}, claim, tmp_path).carry_out(anything)

    with caplog.at_level(logging.WARNING), pytest.raises(LostClaimError):
        copy_context().run(run)
    assert caplog.text
    assert all(" job_id=job_1 fence=2: the lease could not be renewed" in line for line in caplog.text.splitlines())


def test_an_earlier_checkpoint_becomes_a_second_model_that_says_where_it_came_from(tmp_path: Path) -> None:
    house = AppHouse(
        tmp_path / "home", base_models={"tiny": tiny_base()}, trainer_threads=1, trainer_nice=0, inference_threads=1
    )
    store = FileStore(house.settings.resolved_storage_url, tmp_path / "cache")
    runner = Runner(house.database, store, house.settings, Spares([], tmp_path, nice=0))

    def work(slot: Slot) -> None:
        with house.database.write() as session:
            claim = repository.claim_next(
                session, queues=slot.queues, kinds=slot.kinds, owner="w", lease=60, now=house.database.now
            )
        assert claim is not None
        runner.run(claim, slot.environment, threading.Event())

    spec = tiny_spec(upload(house.client, tickets(60)), epochs=2, checkpoint_every_seconds=0)
    job = submit(house.client, spec)
    work(Slot("cpu", ("cpu",), {"CUDA_VISIBLE_DEVICES": ""}))
    older, newest = all_items(house.client, f"/v1/jobs/{job}/checkpoints")
    path = f"/v1/jobs/{job}/checkpoints/{older['id']}/publish"
    publication = house.client.post(path).json()["id"]
    work(SHORT_SLOT)

    done = house.client.post(path).json()
    assert (done["id"], done["status"], done["error"]) == (publication, "succeeded", None)
    model = house.client.get(f"/v1/models/{done['model_id']}").json()
    assert model["source"] == {"job_id": job, "checkpoint_id": older["id"], "step": older["step"]}
    assert older["step"] < newest["step"]
    assert model["job_id"] == publication
    assert model["metrics"] == done["metrics"]
    assert set(model["metrics"]) == {"validation", "test"}
    trained = house.client.get(f"/v1/jobs/{job}").json()["model_id"]
    assert house.client.get(f"/v1/models/{trained}").json()["source"] is None
    assert len(house.client.get("/v1/models").json()["data"]) == 2
    asked = {"model": model["id"], "input": "where is my parcel"}
    assert house.client.post("/v1/predictions", json=asked).json()["results"][0]["label"] in model["labels"]
    house.close()
