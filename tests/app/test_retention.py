"""What a sweep takes away: what is old and needed by nothing, and nothing else."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import event, select

from app.cli import main
from app.db.session import Database
from app.db.tables import CheckpointRow, DatasetRow, ModelRow
from app.errors import UnavailableError
from app.models import repository as models
from app.periodic import Periodic
from app.retention import DAY_SECONDS, SWEEP_SECONDS, Retention, Sweeper
from app.settings import Settings
from app.storage import FileStore
from tests.app.jobs.house import House as JobHouse
from tests.service import wait_until


class House(JobHouse):
    """Rows and files, and a clock that is set by hand."""

    def __init__(self, database: Database, url: str, home: Path) -> None:
        super().__init__(database)
        self.settings = Settings(home=home)
        self.store = FileStore(url, home / "cache")
        self.source = home / "source"
        self.source.parent.mkdir(parents=True, exist_ok=True)
        self.source.write_bytes(b"12345")
        self.later = 0.0  # seconds that the sweep's clock is ahead

    @property
    def retention(self) -> Retention:
        return Retention(self.database, self.store, self.settings, lambda: time.time() + self.later)

    def sweep(self, *, is_dry: bool = False) -> list[str]:
        """The names of what went."""
        return [removal.name for removal in self.retention.sweep(is_dry=is_dry)]

    def put(self, *keys: str) -> None:
        for key in keys:
            self.store.put_file(self.source, key)

    def keys(self) -> set[str]:
        return {file.key for folder in ("bases", "datasets", "jobs", "mine") for file in self.store.files(folder)}

    def add_row(self, row: Any) -> None:
        with self.database.write() as session:
            session.add(row)

    def add_dataset(self, file: str, **columns: Any) -> str:
        dataset_id = f"ds_{uuid4().hex}"
        given = {"name": "d", "sha256": "s", "bytes": 5, "rows": 1, "facts": {}, "source": {}, "extra": {}}
        row = DatasetRow(id=dataset_id, project_id="proj_a", file=file, created_at=0.0, **given, **columns)
        self.add_row(row)
        return dataset_id

    def add_model(self, folder: str, base: str | None = None) -> None:
        given = {"name": "m", "description": {}, "bytes": 5, "extra": {}, "created_at": 0.0}
        model_id = f"mdl_{uuid4().hex}"
        self.add_row(
            ModelRow(
                id=model_id, project_id="proj_a", job_id=f"job_of_{model_id}", folder=folder, base_folder=base, **given
            )
        )

    def add_checkpoint(self, job_id: str, name: str) -> str:
        """A checkpoint with its files; returns their key."""
        key = f"jobs/{job_id}/1/checkpoints/{name}"
        given = {"fence": 1, "step": 1, "epoch": 1.0, "bytes": 5, "sha256": "s", "metrics": {}, "created_at": 0.0}
        self.add_row(CheckpointRow(id=f"{job_id}-{name}", job_id=job_id, folder=key, **given))
        self.put(f"{key}/manifest.json")
        return key

    def checkpoints(self) -> int:
        with self.database.read() as session:
            return session.query(CheckpointRow).count()


@pytest.fixture
def house(job_database: Database, store_url: str, tmp_path: Path) -> Iterator[House]:
    house = House(job_database, store_url, tmp_path / "home")
    yield house
    house.clear()


ORPHANS = {
    "datasets/ds_gone": "datasets/ds_gone/data.parquet",
    "jobs/job_1/2/artifact": "jobs/job_1/2/artifact/model.onnx",
    "jobs/job_1/1/checkpoints/ckpt_1": "jobs/job_1/1/checkpoints/ckpt_1/manifest.json",
    "bases/abc": "bases/abc/manifest.json",
    "jobs/job_1/2/.tmp-1": "jobs/job_1/2/.tmp-1",
    "datasets/ds_here/.tmp-2": "datasets/ds_here/.tmp-2",
}


def test_old_files_that_no_row_names_go_and_young_ones_stay(house: House) -> None:
    house.add_dataset("datasets/ds_here/data.parquet")
    house.put(*ORPHANS.values(), "datasets/ds_here/data.parquet", "mine/own.txt", "jobs/not-ours.txt")
    before = house.keys()
    house.later = DAY_SECONDS - 60
    assert house.sweep() == []
    assert house.keys() == before
    house.later = DAY_SECONDS + 60
    assert sorted(house.sweep(is_dry=True)) == sorted(ORPHANS)
    assert house.keys() == before
    assert sorted(house.sweep()) == sorted(ORPHANS)
    assert house.keys() == {"datasets/ds_here/data.parquet", "mine/own.txt", "jobs/not-ours.txt"}
    assert house.sweep() == []


def test_what_a_row_names_never_goes(house: House) -> None:
    job = house.add(status="paused")
    house.put("datasets/ds_1/data.parquet", "jobs/j/1/artifact/manifest.json", "bases/abc/manifest.json")
    house.add_dataset("datasets/ds_1/data.parquet")
    house.add_model("jobs/j/1/artifact", "bases/abc")
    house.add_checkpoint(job, "c")
    before = house.keys()
    house.later = 1000 * DAY_SECONDS
    assert house.sweep(is_dry=True) == []
    assert house.sweep() == []
    assert (house.keys(), house.checkpoints()) == (before, 1)


def test_a_folder_is_as_old_as_its_newest_file(house: House, store_url: str) -> None:
    if store_url.startswith("memory:"):
        pytest.skip("the times of files in memory cannot be set")
    house.put("bases/abc/model.onnx", "bases/abc/manifest.json")
    old = time.time() - 2 * DAY_SECONDS
    os.utime(Path(store_url) / "bases/abc/model.onnx", (old, old))
    assert house.sweep() == []
    os.utime(Path(store_url) / "bases/abc/manifest.json", (old, old))
    assert house.sweep() == ["bases/abc"]


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_checkpoints_of_a_job_go_some_days_after_its_end(house: House, status: str) -> None:
    ended = house.add(status=status, finished_at=time.time())
    live = [house.add(status=one) for one in ("queued", "running", "paused")]
    keys = [house.add_checkpoint(ended, "one"), house.add_checkpoint(ended, "two")]
    for job in live:
        house.add_checkpoint(job, "one")
    house.put("jobs/j/1/artifact/manifest.json")
    house.add_model("jobs/j/1/artifact")
    house.later = 6.9 * DAY_SECONDS
    assert house.sweep() == []
    house.later = 7.1 * DAY_SECONDS
    assert sorted(house.sweep(is_dry=True)) == keys
    assert house.checkpoints() == 5
    assert sorted(house.sweep()) == keys
    assert house.checkpoints() == 3
    assert house.keys() == {f"jobs/{job}/1/checkpoints/one/manifest.json" for job in live} | {
        "jobs/j/1/artifact/manifest.json"
    }


def test_a_checkpoint_that_is_being_published_stays(house: House) -> None:
    ended = house.add(status="failed", finished_at=time.time())
    old, wanted = (house.add_checkpoint(ended, name) for name in ("one", "two"))
    with house.database.read() as session:
        (row,) = session.scalars(select(CheckpointRow).where(CheckpointRow.folder == wanted))
    house.add(kind="publish", parent_id=ended, checkpoint_id=row.id)
    house.later = 8 * DAY_SECONDS
    assert house.sweep(is_dry=True) == house.sweep() == [old]
    assert house.store.exists(wanted)


def test_files_that_could_not_be_removed_go_with_a_later_sweep(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    key = house.add_checkpoint(house.add(status="failed", finished_at=time.time()), "one")
    house.later = 8 * DAY_SECONDS

    def fail(_key: str) -> None:
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "delete", fail)
        house.sweep()
    assert house.checkpoints() == 0
    assert house.store.exists(key)
    assert house.sweep() == [key]
    assert not house.store.exists(key)


def test_an_encoder_that_a_job_published_over_meanwhile_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.put("bases/abc/manifest.json")
    house.later = 2 * DAY_SECONDS
    retention = house.retention
    named = retention._named_units

    def read_then_publish() -> Any:
        found = named()
        house.add_model("jobs/j/1/artifact", "bases/abc")
        return found

    monkeypatch.setattr(retention, "_named_units", read_then_publish)
    assert list(retention.sweep()) == []
    assert house.store.exists("bases/abc/manifest.json")


def test_no_model_is_published_while_it_is_decided_about_an_encoder(house: House) -> None:
    """Else a job could end in the moment between the look and the removal."""
    with house.database.write() as session:
        assert not models.is_base_named(session, "bases/abc")
        with pytest.raises(UnavailableError), _impatient(house.database).write() as other:
            other.execute(ModelRow.__table__.delete())  # type: ignore[attr-defined]


def _impatient(database: Database) -> Database:
    """The same database, for a caller that waits no more than a moment for a lock."""
    url = database.engine.url
    other = Database(url.render_as_string(hide_password=False))
    statement = "PRAGMA busy_timeout=100" if other.is_sqlite else "SET lock_timeout='100ms'"
    event.listen(other.engine, "connect", lambda connection, _record: connection.execute(statement))
    return other


def test_what_killed_processes_left_in_scratch_goes(house: House) -> None:
    house.add()
    held = house.must_claim()
    scratch = house.settings.scratch
    runs = [f"runs/{held.job_id}/0/log", "runs/job_gone/1/log"]  # nobody writes there any more
    left = ["uploads/tmp1/source", "spool/tmp2", "download-1/m.zip"]
    kept = [f"runs/{held.job_id}/{held.fence}/log", "something/else"]
    for name in (*left, *kept, *runs):
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_bytes(b"12345")
    assert len(house.sweep(is_dry=True)) == len(runs)
    house.sweep()
    assert [name for name in runs if (scratch / name).parent.exists()] == []
    assert [name for name in (*left, *kept) if not (scratch / name).exists()] == []
    house.later = 2 * DAY_SECONDS
    assert len(house.sweep(is_dry=True)) == len(left)
    removals = list(house.retention.sweep())
    assert {removal.what for removal in removals} == {"left in scratch"}
    assert [removal.bytes for removal in removals] == [5] * len(left)
    assert [name for name in left if (scratch / name).exists()] == []
    assert [name for name in kept if not (scratch / name).exists()] == []
    assert not (scratch / "runs/job_gone").exists()


def test_idempotency_keys_are_forgotten_after_a_day(house: House) -> None:
    columns = {"idempotency_key": "k1", "request_sha256": "s"}
    old, young = (
        house.add(**columns, created_at=time.time() - DAY_SECONDS - 60),
        house.add(idempotency_key="k2", created_at=time.time()),
    )
    dataset = house.add_dataset("f", idempotency_key="k3")
    house.sweep(is_dry=True)
    assert house.row(old).idempotency_key == "k1"
    house.sweep()
    assert [house.row(job).idempotency_key for job in (old, young)] == [None, "k2"]
    with house.database.read() as session:
        assert session.get_one(DatasetRow, dataset).idempotency_key is None


def test_folders_that_hold_nothing_go_when_they_are_old(house: House, store_url: str) -> None:
    if store_url.startswith("memory:"):
        pytest.skip("an object store has no folders")
    house.put("jobs/job_1/1/artifact/manifest.json")
    (Path(store_url) / "jobs/job_2/1/checkpoints").mkdir(parents=True)
    house.later = DAY_SECONDS - 60
    house.sweep()
    assert (Path(store_url) / "jobs/job_2").exists()
    house.later = 2 * DAY_SECONDS
    house.add_model("jobs/job_1/1/artifact")
    house.sweep()
    assert [path.name for path in (Path(store_url) / "jobs").iterdir()] == ["job_1"]
    assert (Path(store_url) / "jobs").exists()


class TestSweeper:
    """It counts sweeps: what they do is tested above."""

    @pytest.fixture
    def sweeps(self) -> list[str]:
        return []

    @pytest.fixture
    def sweeper(self, tmp_path: Path, sweeps: list[str]) -> Sweeper:
        def sweep() -> Iterator[Any]:
            sweeps.append("begun")
            yield SimpleNamespace(what="named by no row", name="f", bytes=1)
            yield SimpleNamespace(what="named by no row", name="g", bytes=1)
            sweeps.append("ended")

        return Sweeper(SimpleNamespace(sweep=sweep), tmp_path)  # type: ignore[arg-type]

    def _make_due(self, home: Path) -> None:
        long_ago = time.time() - SWEEP_SECONDS - 1
        (home / "sweep.lock").touch()
        os.utime(home / "sweep.lock", (long_ago, long_ago))

    def test_it_sweeps_once_an_hour(self, sweeper: Sweeper, sweeps: list[str], tmp_path: Path) -> None:
        sweeper.run_once()
        assert sweeps == []  # a home that has just been made holds nothing old
        for _ in range(2):
            self._make_due(tmp_path)
            sweeper.run_once()
            sweeper.run_once()
        assert sweeps == ["begun", "ended"] * 2

    def test_one_process_sweeps_at_a_time(self, sweeper: Sweeper, sweeps: list[str], tmp_path: Path) -> None:
        self._make_due(tmp_path)
        with (tmp_path / "sweep.lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            sweeper.run_once()
            assert sweeps == []
        sweeper.run_once()
        assert sweeps == ["begun", "ended"]

    def test_a_stop_ends_a_sweep_early_and_it_stays_due(
        self, sweeper: Sweeper, sweeps: list[str], tmp_path: Path
    ) -> None:
        self._make_due(tmp_path)
        sweeper._stopping.set()
        sweeper.run_once()
        sweeper.run_once()
        assert sweeps == ["begun", "begun"]


def test_a_round_that_fails_is_followed_by_the_next() -> None:
    rounds: list[int] = []

    class Failing(Periodic):
        def run_once(self) -> None:
            rounds.append(1)
            raise [UnavailableError("away", code="c"), RuntimeError("a fault")][len(rounds) % 2]

    periodic = Failing("failing", 0.01)
    periodic.start()
    wait_until(lambda: len(rounds) > 3, 20)
    periodic.stop()
    count = len(rounds)
    time.sleep(0.05)
    assert len(rounds) == count


def test_prune_says_what_would_go_and_then_what_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "MINIMAND" not in name})
    home, old = tmp_path / "home", time.time() - 2 * DAY_SECONDS
    orphan = home / "files/datasets/ds_1/data.parquet"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x" * 1500)
    os.utime(orphan, (old, old))

    def prune(*options: str) -> str:
        result = CliRunner().invoke(main, ["prune", "--home", str(home), *options])
        assert result.exit_code == 0, result.output
        return result.output

    refused = CliRunner().invoke(main, ["prune", "--home", str(home)])
    assert refused.exit_code == 1
    assert "Run `minimand migrate`" in refused.stderr
    assert CliRunner().invoke(main, ["migrate", "--home", str(home)]).exit_code == 0
    line = "    1.5 kB  named by no row: datasets/ds_1\n"
    assert prune("--dry-run") == f"{line}1 thing, 1.5 kB would go.\n"
    assert orphan.exists()
    assert prune() == f"{line}1 thing, 1.5 kB went.\n"
    assert not orphan.exists()
    assert prune() == "0 things, 0 B went.\n"
