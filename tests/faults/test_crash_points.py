"""A process dies at each place where dying might hurt; what was accepted is done once, and no debris is served."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml.crash_points import POINTS
from tests.conftest import wait_until_gone
from tests.faults.conftest import Houses
from tests.faults.site import ROWS, Site
from tests.service import PATIENCE_SECONDS, all_items, events_of, reasons_of, tickets, upload, wait_until

pytestmark = pytest.mark.proof

BATCH_ROWS = 3_000  # some chunks, with a checkpoint after each


def points(program: str) -> Any:
    """Marks a test of each point of a program."""
    return pytest.mark.parametrize("point", POINTS[program])


class Crash:
    """One point, and the file that arms it."""

    def __init__(self, file: Path, point: str) -> None:
        self._file, self._point = file, point

    def arm(self) -> None:
        """Whoever comes by the point next dies there."""
        # In one step: a process that looks finds nothing or the whole name.
        new = self._file.with_suffix(".new")
        new.write_text(self._point)
        new.replace(self._file)

    def disarm(self) -> None:
        self._file.unlink(missing_ok=True)

    def has_come(self) -> bool:
        return not self._file.exists()


@pytest.fixture
def crash(houses: Houses, point: str) -> Iterator[Crash]:
    crash = Crash(houses.crash_file, point)
    yield crash
    crash.disarm()


@pytest.mark.row("the API crashes while it accepts, and is asked again", runs=2, is_watched=False)
@points("api")
def test_what_is_asked_twice_because_the_api_died_is_there_once(site: Site, crash: Crash, point: str) -> None:
    api = next(program for program in reversed(site.service.programs) if "api" in program.log.name)
    key = {"Idempotency-Key": f"{point}-{site.record.seed}"}
    is_upload = not point.startswith("job.")

    def ask() -> httpx.Response:
        if is_upload:
            return site.client.post("/v1/datasets", files={"file": ("again.csv", ROWS)}, headers=key)
        return site.client.post("/v1/jobs", json=site.spec(), headers=key)

    path = "/v1/datasets" if is_upload else "/v1/jobs"
    before = {one["id"] for one in all_items(site.client, path)}
    crash.arm()
    with pytest.raises(httpx.TransportError):
        ask()
    assert api.process.wait(PATIENCE_SECONDS) == -9
    site.restart_api()
    first, second = ask(), ask()
    assert first.status_code == second.status_code == 201
    assert {one["id"] for one in all_items(site.client, path)} - before == {first.json()["id"]}
    assert second.json()["id"] == first.json()["id"]
    for half in site.service.temporary_files():
        half.unlink()  # as the daily sweep does
    if is_upload:
        site.dataset = first.json()["id"]
        site.submit()
    else:
        site.accept(first)
    site.service.start_worker()
    site.settle()


@pytest.mark.row("the worker crashes at each step of a run", runs=2)
@points("worker")
def test_a_run_whose_worker_died_is_finished_once_by_the_next(site: Site, crash: Crash, point: str) -> None:
    first = site.service.start_worker()
    crash.arm()
    job = site.submit("frozen" if point == "model.after_base" else "full")
    assert first.process.wait(PATIENCE_SECONDS) == -9
    assert crash.has_come()
    wait_until_gone(site.service.trainers(), 10)
    site.strike(site.service.start_worker)
    site.settle(attempts=1)  # one that died before its first checkpoint has made no progress
    is_over = point in ("model.after_commit", "run.after_release")
    again = [] if is_over else ["requeued", "claimed"]
    reasons = [reason for reason in reasons_of(events_of(site.client, job)) if reason != "resumed"]
    assert reasons == ["queued", "claimed", *again, "succeeded"]


@pytest.mark.row("the trainer crashes at each step of saving a folder", runs=1)
@points("trainer")
def test_a_folder_whose_writer_died_is_old_or_new_and_never_mixed(site: Site, crash: Crash, point: str) -> None:
    if point.startswith("cache."):  # which an earlier job filled
        shutil.rmtree(site.service.home / "cache" / "training", ignore_errors=True)
    site.service.start_worker()
    crash.arm()
    job = site.submit("frozen" if point.startswith("encoder.") else "full")
    wait_until(crash.has_come, PATIENCE_SECONDS, site.service.log_of_all)
    site.settle(attempts=1)
    reasons = [reason for reason in reasons_of(events_of(site.client, job)) if reason != "resumed"]
    assert reasons == ["queued", "claimed", "requeued", "claimed", "succeeded"]


@pytest.mark.row("the worker crashes amid a prediction batch, and at its end", runs=2)
@points("batch worker")
def test_a_batch_whose_worker_died_comes_to_the_same_bytes(site: Site, crash: Crash, point: str) -> None:
    dataset, model = upload(site.client, tickets(BATCH_ROWS)), all_items(site.client, "/v1/models")[0]["id"]
    body = {"model": model, "dataset": dataset, "checkpoint_every_seconds": 0}

    def ask() -> str:
        reply = site.client.post("/v1/prediction_batches", json=body)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])

    def download(job: str) -> list[bytes]:
        path = f"/v1/prediction_batches/{job}"
        return [site.client.get(f"{path}/{name}").raise_for_status().content for name in ("output", "errors")]

    first = site.service.start_worker()
    crash.arm()
    struck = ask()
    assert first.process.wait(PATIENCE_SECONDS) == -9
    wait_until_gone(site.service.trainers(), 10)
    site.service.start_worker()
    undisturbed = ask()
    for job in (struck, undisturbed):
        done = site.service.wait_for_job(site.client, job, ["succeeded"])
        assert done["result"]["request_counts"] == {"total": BATCH_ROWS, "completed": BATCH_ROWS, "failed": 0}
    assert download(struck) == download(undisturbed)
    assert reasons_of(events_of(site.client, struck)) == [
        *("queued", "claimed", "requeued", "claimed", "resumed", "succeeded")
    ]
    wait_until(lambda: not site.service.run_directories(), 30)
    assert len(list((site.service.home / "files" / "jobs" / struck).glob("*/output"))) == 1
