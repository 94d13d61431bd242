"""A process dies at each place where dying might hurt; what was accepted is done once, and no debris is served."""

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ml.crash_points import POINTS
from tests.conftest import wait_until_gone
from tests.faults.conftest import Houses
from tests.faults.site import ROWS, Site
from tests.service import PATIENCE_SECONDS, all_items, events_of, reasons_of, wait_until

# These run in `make test`.
QUICK = {"job.after_commit", "checkpoint.after_store"}


def points(program: str) -> Any:
    """Marks a test of each point of a program."""
    marked = [pytest.param(point, marks=[] if point in QUICK else pytest.mark.proof) for point in POINTS[program]]
    return pytest.mark.parametrize("point", marked)


@pytest.fixture
def crash(houses: Houses, point: str) -> Iterator[Any]:
    """Arms the point; what it returns waits until a process has died there."""

    def arm() -> None:
        # In one step: a process that looks finds nothing or the whole name.
        new = houses.crash_file.with_suffix(".new")
        new.write_text(point)
        new.replace(houses.crash_file)

    arm.file = houses.crash_file  # type: ignore[attr-defined]
    yield arm
    houses.crash_file.unlink(missing_ok=True)


def wait_for_crash(site: Site, crash: Any) -> None:
    wait_until(lambda: not crash.file.exists(), PATIENCE_SECONDS, site.service.log_of_all)


@pytest.mark.row("the API crashes while it accepts, and is asked again", runs=2, kills_api=True)
@points("api")
def test_what_is_asked_twice_because_the_api_died_is_there_once(site: Site, crash: Any, point: str) -> None:
    api = next(program for program in reversed(site.service.programs) if "api" in program.log.name)
    key = {"Idempotency-Key": f"{point}-{site.record.seed}"}
    is_upload = not point.startswith("job.")

    def ask() -> httpx.Response:
        if is_upload:
            return site.client.post("/v1/datasets", files={"file": ("again.csv", ROWS)}, headers=key)
        return site.client.post("/v1/jobs", json=site.spec(), headers=key)

    path = "/v1/datasets" if is_upload else "/v1/jobs"
    before = {one["id"] for one in all_items(site.client, path)}
    crash()
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
def test_a_run_whose_worker_died_is_finished_once_by_the_next(site: Site, crash: Any, point: str) -> None:
    first = site.service.start_worker()
    crash()
    job = site.submit("frozen" if point == "model.after_base" else "full")
    assert first.process.wait(PATIENCE_SECONDS) == -9
    assert not crash.file.exists()
    wait_until_gone(site.service.trainers(), 10)
    site.strike(site.service.start_worker)
    site.settle(attempts=1)  # one that died before its first checkpoint has made no progress
    is_over = point in ("model.after_commit", "run.after_release")
    again = [] if is_over else ["requeued", "claimed"]
    reasons = [reason for reason in reasons_of(events_of(site.client, job)) if reason != "resumed"]
    assert reasons == ["queued", "claimed", *again, "succeeded"]


@pytest.mark.row("the trainer crashes at each step of saving a folder", runs=1)
@points("trainer")
def test_a_folder_whose_writer_died_is_old_or_new_and_never_mixed(site: Site, crash: Any, point: str) -> None:
    if point.startswith("cache."):  # which an earlier job filled
        shutil.rmtree(site.service.home / "cache" / "training", ignore_errors=True)
    site.service.start_worker()
    crash()
    job = site.submit("frozen" if point.startswith("encoder.") else "full")
    wait_for_crash(site, crash)
    site.settle(attempts=1)
    reasons = [reason for reason in reasons_of(events_of(site.client, job)) if reason != "resumed"]
    assert reasons == ["queued", "claimed", "requeued", "claimed", "succeeded"]
