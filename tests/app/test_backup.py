"""A backup brought back is the same installation: every row, every file, on either database; or it is refused."""

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from sqlalchemy import select

from app import backup
from app.backup import TABLES, BackupError, Summary, back_up, restore
from app.cli import main
from app.db.migrate import head_revision
from app.db.session import Database
from app.db.tables import CheckpointRow, JobRow, ModelRow
from app.ids import new_id
from app.jobs import repository
from app.jobs.repository import Claim, Event
from app.keys.caller import FIRST_PROJECT
from app.main import create_app
from app.settings import Settings
from app.storage import FileStore
from ml.artifact.manifest import folder_bytes, manifest_sha256, publish_folder, read_manifest
from tests.service import AppHouse, submit, tickets, upload

CAP = 3


class House(AppHouse):
    """The application with something of everything: a dataset, jobs in every state, a checkpoint, a model."""

    def __init__(self, home: Path, **settings: Any) -> None:
        home.mkdir(exist_ok=True)
        super().__init__(home, **settings)
        self.store = self.services.store
        self.dataset = upload(self.client, tickets(60))
        spec = {"dataset": self.dataset, "metadata": {"team": "émigrés \u2028 ✓"}}
        self.jobs = {name: submit(self.client, spec) for name in ("ended", "running", "cancelling", "queued")}
        claims = {name: self._claim() for name in ("ended", "running", "cancelling")}
        self.checkpoint = self._add_checkpoint(claims["running"])
        self.model = self._end(claims["ended"])
        assert self.client.post(f"/v1/jobs/{self.jobs['cancelling']}/cancel").status_code == 202

    def _claim(self) -> Claim:
        with self.database.write() as session:
            claim = repository.claim_next(
                session, queues=("cpu",), kinds=("training",), owner="w", lease=600, now=self.database.now
            )
            assert claim is not None
            metric = {"name": "train/loss", "step": 1, "value": 0.1 + 0.2, "created_at": 1e9 / 3}
            repository.put_metrics(session, claim.job_id, [metric])
        return claim

    def put_folder(self, key: str, content: bytes) -> str:
        """A published folder in the store; returns the sha256 of its manifest."""
        source = self.settings.home / uuid4().hex
        with publish_folder(source, "test", {}) as folder:
            (folder / "weights").write_bytes(content)
        self.store.put_folder(source, key)
        return manifest_sha256(source)

    def _add_checkpoint(self, claim: Claim) -> str:
        key = f"jobs/{claim.job_id}/{claim.fence}/checkpoints/ckpt_1"
        columns = {"fence": claim.fence, "step": 1, "epoch": 0.1, "bytes": 7, "metrics": {}, "created_at": 1.0}
        row = CheckpointRow(
            id=new_id("ckpt"), job_id=claim.job_id, folder=key, sha256=self.put_folder(key, b"one"), **columns
        )
        with self.database.write() as session:
            repository.add_checkpoint(session, claim, row, [Event("checkpoint", "checkpoint", {})])
        return key

    def _end(self, claim: Claim) -> str:
        key, base = f"jobs/{claim.job_id}/{claim.fence}/artifact", "bases/abc"
        output = f"jobs/{claim.job_id}/{claim.fence}/output"
        self.put_folder(key, b"head")
        self.put_folder(output, b"lines")
        self.put_folder(base, b"encoder")
        row = ModelRow(
            id=new_id("mdl"),
            project_id=FIRST_PROJECT,
            job_id=claim.job_id,
            name="m",
            folder=key,
            base_folder=base,
            description={"labels": ["é"], "nothing": None},
            bytes=4,
            extra={},
            created_at=time.time(),
        )
        with self.database.write() as session:
            ended = {"status": "succeeded", "model_id": row.id, "output": output}
            repository.finish(session, claim, now=self.database.now, **ended)
            session.add(row)
        return key


def rows_of(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    with database.read() as session:
        return {
            table.name: [row._asdict() for row in session.execute(select(table).order_by(*table.primary_key))]
            for table in TABLES
        }


def files_of(store: FileStore) -> dict[str, bytes]:
    return {
        file.key: b"".join(store.stream(file.key)) for top in ("bases", "datasets", "jobs") for file in store.files(top)
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    house.close()


@pytest.fixture(scope="module")
def saved(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it. A test that changes it copies it first."""
    folder = tmp_path_factory.mktemp("backups") / "saved"
    back_up(house.database, house.store, folder)
    return folder


class Empty:
    """Where nothing has been restored to yet."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, **settings)
        self.database = Database(self.settings.resolved_database_url)
        self.store = FileStore(self.settings.resolved_storage_url, home / "cache")

    def restore(self, source: Path) -> tuple[Summary, int]:
        return restore(self.database, self.store, source, max_attempts=CAP)

    def refuse(self, source: Path) -> str:
        """Why it is refused; nothing may be there afterwards."""
        with pytest.raises(BackupError) as raised:
            self.restore(source)
        assert files_of(self.store) == {}
        return str(raised.value)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Empty]:
    empty = Empty(tmp_path / "empty")
    yield empty
    empty.database.close()


@pytest.mark.parametrize("kinds", [("sqlite", "postgres"), ("postgres", "sqlite")], ids="-to-".join)
def test_a_restored_service_is_the_same(kinds: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    urls = {
        "sqlite": {"database_url": None},
        "postgres": {
            "database_url": request.getfixturevalue("postgres_database_url"),
            "storage_url": f"memory://{uuid4().hex}",
        },
    }
    house = House(tmp_path / "house", **urls[kinds[0]])
    before, files = rows_of(house.database), files_of(house.store)
    summary = back_up(house.database, house.store, tmp_path / "saved")
    assert (summary.rows, summary.unsound) == ({name: len(rows) for name, rows in before.items()}, [])
    assert rows_of(house.database) == before

    empty = Empty(tmp_path / "empty", **urls[kinds[1]])
    assert empty.restore(tmp_path / "saved") == (summary, 2)
    after = rows_of(empty.database)
    assert files_of(empty.store) == files
    for table in set(before) - {"jobs", "events"}:
        assert after[table] == before[table], table
    _check_jobs(house, before, after)

    app = create_app(empty.settings)
    client = TestClient(app, headers={"Authorization": f"Bearer {house.secret}"})
    for path in ("datasets", f"datasets/{house.dataset}/rows", "jobs", f"jobs/{house.jobs['ended']}/events"):
        reply = client.get(f"/v1/{path}")
        assert reply.status_code == 200
        assert len(reply.json()["data"]) == len(house.client.get(f"/v1/{path}").json()["data"]) > 0
    with empty.database.write() as session:
        claim = repository.claim_next(
            session, queues=("cpu",), kinds=("training",), owner="w", lease=60, now=empty.database.now
        )
    assert claim == Claim(house.jobs["running"], 2)
    for database in (house.database, empty.database, app.state.services.database):
        database.close()


def _check_jobs(house: House, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Those that ran wait again, or are cancelled where that was wanted; the others are as they were."""
    changed = ("status", "owner", "lease_until", "wanted", "queued_at", "finished_at", "event_sequence")
    jobs = {row["id"]: row for row in after["jobs"]}
    for row in before["jobs"]:
        found = jobs[row["id"]]
        if row["status"] != "running":
            assert found == row
            continue
        assert {name: value for name, value in found.items() if name not in changed} == {
            name: value for name, value in row.items() if name not in changed
        }
        assert (found["owner"], found["lease_until"], found["wanted"]) == (None, None, None)
    assert jobs[house.jobs["running"]]["status"] == "queued"
    assert (jobs[house.jobs["running"]]["fence"], jobs[house.jobs["running"]]["attempts"]) == (1, 0)
    assert jobs[house.jobs["cancelling"]]["status"] == "cancelled"
    new = [row for row in after["events"] if row not in before["events"]]
    assert [row for row in after["events"] if row in before["events"]] == before["events"]
    assert sorted(row["message"] for row in new) == [
        "cancelled: it was restored from a backup",
        "requeued: it was restored from a backup",
    ]


def test_what_was_null_is_null_again(saved: Path, empty: Empty) -> None:
    empty.restore(saved)
    with empty.database.read() as session:
        assert len(session.scalars(select(JobRow).where(JobRow.error.is_(None))).all()) == 4
        assert session.connection().exec_driver_sql("SELECT count(*) FROM jobs WHERE error IS NULL").scalar() == 4


def test_a_backup_is_for_its_owner_alone_and_never_written_over(house: House, saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o700
    before = manifest_sha256(saved)
    with pytest.raises(BackupError, match="is there already"):
        back_up(house.database, house.store, saved)
    assert manifest_sha256(saved) == before


def test_a_backup_that_breaks_off_leaves_nothing(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_key: str) -> Iterator[bytes]:
        raise OSError("the disk is full")

    monkeypatch.setattr(house.store, "stream", fail)
    with pytest.raises(OSError, match="full"):
        back_up(house.database, house.store, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- what changes while it is made


def test_rows_are_of_one_moment(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is queued while the rows are read is in all tables or in none."""
    house = House(tmp_path / "house", database_url=database_url)
    submitted: list[str] = []

    def submit_once(value: Any) -> str:
        if not submitted:  # projects are being read
            submitted.append(submit(house.client, {"dataset": house.dataset}))
        return json.dumps(value)

    monkeypatch.setattr(backup, "json", SimpleNamespace(dumps=submit_once))
    back_up(house.database, house.store, tmp_path / "saved")
    monkeypatch.undo()
    assert len(submitted) == 1
    for table in ("jobs", "events"):
        assert submitted[0] not in (tmp_path / "saved/rows" / f"{table}.jsonl").read_text()
    house.close()


def test_a_checkpoint_that_goes_while_files_are_copied_goes_with_its_row(tmp_path: Path) -> None:
    house = House(tmp_path / "house")
    stream = house.store.stream

    def delete_then_stream(key: str) -> Iterator[bytes]:
        if key.startswith("datasets/"):  # the last: the checkpoint has been copied
            return stream(key)
        if key.startswith(house.checkpoint):
            with house.database.write() as session:
                session.execute(CheckpointRow.__table__.delete())  # type: ignore[attr-defined]
            house.store.delete(house.checkpoint)
        return stream(key)

    house.store.stream = delete_then_stream  # type: ignore[method-assign]
    summary = back_up(house.database, house.store, tmp_path / "saved")
    assert (summary.rows["checkpoints"], summary.unsound) == (0, [])
    names = read_manifest(tmp_path / "saved")["files"]
    assert not [name for name in names if "checkpoints/" in name]
    assert f"files/{house.model}/weights" in names
    house.close()


def test_files_that_go_again_and_again_are_told(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(100))
    monkeypatch.setattr(backup, "_copy", lambda *_arguments: f"it is missing ({next(count)})")
    with pytest.raises(BackupError, match="Files went as fast as they were copied, 5 times"):
        back_up(house.database, house.store, tmp_path / "saved")


def test_what_the_store_has_lost_or_damaged_is_told_and_the_rest_is_saved(tmp_path: Path, empty: Empty) -> None:
    house = House(tmp_path / "house")
    files, dataset = tmp_path / "house/files", f"datasets/{house.dataset}/data.parquet"
    (files / dataset).write_bytes(b"x" + (files / dataset).read_bytes()[1:])
    (files / house.model / "weights").unlink()
    house.store.delete(house.checkpoint)
    summary = back_up(house.database, house.store, tmp_path / "saved")
    faults = dict(fault.split(": ", 1) for fault in summary.unsound)
    assert set(faults) == {dataset, house.model, house.checkpoint}
    assert faults[dataset] == "it is not what was stored"
    assert "weights cannot be read" in faults[house.model]
    assert "no readable manifest" in faults[house.checkpoint]
    restored, _ = empty.restore(tmp_path / "saved")
    assert restored == summary
    assert files_of(empty.store) == files_of(house.store)
    house.close()


# ------------------------------------------------------------------------------------------------- what is not restored


def _copied(saved: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copied"
    for path in saved.rglob("*"):
        if path.is_file():
            (target / path.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(saved)).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("name", ["rows/jobs.jsonl", "files/bases/abc/weights", "manifest.json"])
def test_one_flipped_bit_is_found_before_anything_is_restored(
    saved: Path, empty: Empty, tmp_path: Path, name: str
) -> None:
    copied = _copied(saved, tmp_path)
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    assert "cannot be trusted" in empty.refuse(copied)
    assert not (tmp_path / "empty/files").exists()
    assert not _has_tables(empty)


@pytest.mark.parametrize("name", ["rows/projects.jsonl", "files/bases/abc/weights", "manifest.json"])
def test_a_missing_file_is_found_before_anything_is_restored(
    saved: Path, empty: Empty, tmp_path: Path, name: str
) -> None:
    copied = _copied(saved, tmp_path)
    (copied / name).unlink()
    assert "cannot be trusted" in empty.refuse(copied)
    assert not _has_tables(empty)


def _has_tables(empty: Empty) -> bool:
    with empty.database.read() as session:
        return bool(session.connection().exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar())


def test_a_backup_of_another_schema_is_refused_with_both_named(
    house: House, empty: Empty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "head_revision", lambda: "20200101_other")
    back_up(house.database, house.store, tmp_path / "saved")
    monkeypatch.undo()
    refused = empty.refuse(tmp_path / "saved")
    assert "20200101_other" in refused
    assert head_revision() in refused


def test_a_folder_that_is_something_else_is_refused(house: House, empty: Empty) -> None:
    assert "no backup" in empty.refuse(house.store.local_path(house.model))


def test_a_database_in_use_is_refused(saved: Path, tmp_path: Path) -> None:
    used = AppHouse(tmp_path / "used")
    before = rows_of(used.database)
    with pytest.raises(BackupError, match="The database is in use"):
        restore(used.database, used.services.store, saved, max_attempts=CAP)
    assert rows_of(used.database) == before
    used.close()


def test_a_store_that_holds_files_is_refused(saved: Path, empty: Empty, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"mine")
    empty.store.put_file(source, "datasets/mine")
    with pytest.raises(BackupError, match="The file store holds files"):
        empty.restore(saved)
    assert files_of(empty.store) == {"datasets/mine": b"mine"}
    assert not _has_tables(empty)


def test_a_restore_that_breaks_off_leaves_nothing_and_can_be_repeated(
    saved: Path, empty: Empty, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file, count = empty.store.put_file, iter(range(100))

    def break_off(source: Path, key: str) -> None:
        if next(count) == 3:
            raise OSError("the disk is full")
        put_file(source, key)

    with monkeypatch.context() as patch:
        patch.setattr(empty.store, "put_file", break_off)
        with pytest.raises(OSError, match="full"):
            empty.restore(saved)
    assert files_of(empty.store) == {}
    assert not any(rows_of(empty.database).values())
    summary, _ = empty.restore(saved)
    assert summary.rows["jobs"] == 4


# ------------------------------------------------------------------------------------------------------- by command


def test_the_commands_say_what_was_saved_and_restored(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "MINIMAND" not in name})
    saved, home = tmp_path / "saved", tmp_path / "home"

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    made = call("backup", saved, "--home", house.settings.home)
    assert made.exit_code == 0, made.output
    kilobytes = f"{folder_bytes(read_manifest(saved)) / 1000:.1f} kB"
    assert made.output == f"{saved} holds 1 datasets, 4 jobs, 1 models, {kilobytes}. All of it verifies.\n"
    again = call("backup", saved, "--home", house.settings.home)
    assert (again.exit_code, again.stderr) == (
        1,
        f"No backup was made. {saved} is there already. Name a folder that isn't.\n",
    )

    restored = call("restore", saved, "--home", home)
    assert restored.exit_code == 0, restored.output
    assert f"Restored 1 datasets, 4 jobs, 1 models, {kilobytes}. Jobs that were running" in restored.output
    assert "API keys are those of the backup" in restored.output
    refused = call("restore", saved, "--home", home)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Nothing was restored. The database is in use.")
    assert call("migrate", "--home", home).exit_code == 0
    assert not (home / "admin.key").exists()
