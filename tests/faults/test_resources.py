"""Too little disk, too little memory, numbers without end: a named failure or a wait, and the API stays well."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.faults.conftest import Houses, own_site
from tests.faults.site import ROWS, Record, Site
from tests.service import PATIENCE_SECONDS, events_of, reasons_of, submit, tiny_spec, upload, wait_until

pytestmark = pytest.mark.proof


class SmallDisk:
    """A mounted file system of few bytes, which can be filled to the brim."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass

    def make_room(self) -> None:
        (self.folder / "filler").unlink()


@contextmanager
def site_with_small(
    part: str, tmp_path: Path, houses: Houses, record: Record, broker: str
) -> Iterator[tuple[Site, SmallDisk]]:
    """An installation of which one folder is a small disk."""
    disk = SmallDisk(tmp_path / "home" / part, megabytes=64)
    try:
        with own_site(tmp_path / "home", houses, record, broker_url=broker) as site:
            yield site, disk
    finally:
        subprocess.run(["umount", "-l", str(disk.folder)], check=True)


@pytest.mark.row("the store's disk is full while a job trains", runs=2)
def test_a_full_store_costs_checkpoints_and_no_job(
    tmp_path: Path, houses: Houses, record: Record, valkey_server: str
) -> None:
    with site_with_small("files", tmp_path, houses, record, valkey_server) as (site, disk):
        worker = site.service.start_worker()
        job = site.submit()
        site.wait_until_under_way(job)
        disk.fill()
        wait_until(lambda: "was not stored" in worker.said(), PATIENCE_SECONDS, worker.said)
        assert site.client.get("/healthz").is_success
        refused = site.client.post("/v1/datasets", files={"file": ("more.csv", ROWS)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "disk_full")
        disk.make_room()
        site.settle(attempts=1)  # one, if it was at its end before there was room again


@pytest.mark.row("the trainer's disk is full while it saves", runs=2)
def test_a_trainer_whose_disk_is_full_keeps_its_last_checkpoint_and_goes_on(
    tmp_path: Path, houses: Houses, record: Record, valkey_server: str
) -> None:
    with site_with_small("scratch", tmp_path, houses, record, valkey_server) as (site, disk):
        site.service.start_worker(poll_seconds=3)
        job = site.submit()
        site.wait_until_under_way(job)
        disk.fill()
        wait_until(
            lambda: any("no room" in str(event) or "No space" in str(event) for event in events_of(site.client, job)),
            PATIENCE_SECONDS,
            site.service.log_of_all,
        )
        disk.make_room()
        site.settle(attempts=2)


@pytest.mark.row("a memory cap on the trainer", runs=3)
def test_a_trainer_that_exceeds_its_memory_fails_its_job_once_and_says_so(site: Site) -> None:
    site.service.start_worker(trainer_memory_bytes=600_000_000)
    job = submit(site.client, tiny_spec(site.dataset))
    ended = site.service.wait_for_job(site.client, job, ["failed"])
    assert ended["error"]["code"] == "out_of_memory"
    assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "failed"]
    assert site.client.get("/healthz").is_success


@pytest.mark.row("learning rate 1e9", runs=3)
def test_a_loss_without_end_fails_the_job_and_publishes_nothing(site: Site) -> None:
    site.service.start_worker()
    spec = tiny_spec(site.dataset, optimizer={"type": "sgd", "learning_rate": 1e9}, seed=17 + site.record.seed)
    job = submit(site.client, spec)
    ended = site.service.wait_for_job(site.client, job, ["failed"])
    assert ended["error"]["code"] == "non_finite_loss"
    assert "step" in ended["error"]["message"]
    assert ended["model_id"] is None
    assert reasons_of(events_of(site.client, job)) == ["queued", "claimed", "failed"]


@pytest.mark.row("NaN, one label, no rows", runs=1)
@pytest.mark.parametrize(
    ("content", "task"),
    [
        (b"text,label\n" + b"a b,nan\nc d,1.5\ne f,2.5\n" * 20, "regression"),
        (b"text,label\n" + b"a b,same\n" * 60, "text_classification"),
    ],
)
def test_data_that_teach_nothing_are_refused_before_a_job_is_made(site: Site, content: bytes, task: str) -> None:
    dataset = upload(site.client, content)
    refused = site.client.post("/v1/jobs", json={**tiny_spec(dataset), "task": {"type": task}})
    assert refused.status_code == 422, refused.text
    assert site.client.get("/v1/jobs", params={"dataset": dataset}).json()["data"] == []


@pytest.mark.row("NaN, one label, no rows", runs=1)
def test_a_file_without_rows_is_refused(site: Site) -> None:
    refused = site.client.post("/v1/datasets", files={"file": ("empty.csv", b"text,label\n")})
    assert refused.status_code == 422, refused.text


@pytest.mark.row("memory and open files after 10 jobs are back where they were", runs=1)
def test_jobs_leave_no_memory_and_no_open_file_behind(site: Site) -> None:
    worker = site.service.start_worker()

    def train(jobs: int) -> None:
        for _ in range(jobs):
            site.service.wait_for_job(
                site.client, submit(site.client, tiny_spec(site.dataset, max_steps=5)), ["succeeded"]
            )

    def held() -> dict[str, tuple[int, int]]:
        mine = {"worker": worker.pid, "api": next(p.pid for p in site.service.programs if "api" in p.log.name)}
        found = {}
        for name, pid in mine.items():
            group = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            found[name] = (sum(one.num_fds() for one in group), sum(one.memory_info().rss for one in group))
        return found

    train(3)
    time.sleep(2)
    before = held()
    train(10)
    wait_until(lambda: all(held()[name][0] <= before[name][0] + 2 for name in before), 30, lambda: f"{before} {held()}")
    for name, (_, rss) in held().items():
        assert rss < 1.15 * before[name][1] + 10_000_000, (name, before, held())
