"""Deleting a model: not while a live job needs it, the row first, and what its files do is no matter of the caller."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.db.session import Database
from app.db.tables import JobRow, ModelRow
from app.errors import InUseError, NotFoundError
from app.http.idempotency import create_once
from app.ids import new_id
from app.jobs import service as job_service
from app.keys.caller import FIRST_PROJECT
from app.models import repository
from tests.service import AppHouse, error_of, submit, tickets, upload


class House(AppHouse):
    """The application with a dataset, and models of which it knows no more than their rows."""

    def __init__(self, home: Path, **settings: Any) -> None:
        super().__init__(home, **settings)
        self.dataset = upload(self.client, tickets(60))

    def add_model(self) -> str:
        """A model that fits the dataset."""
        model_id = new_id("mdl")
        row = ModelRow(
            id=model_id,
            project_id=FIRST_PROJECT,
            job_id=new_id("job"),
            name="m",
            folder=f"jobs/{model_id}/1/artifact",
            base_folder=None,
            description={
                "head": "native",
                "loads_in_transformers": True,
                "base_model": "minilm",
                "task": {"labels": ["delivery", "other", "refund"], "reading": "softmax"},
            },
            bytes=1,
            extra={},
            created_at=time.time(),
        )
        with self.database.write() as session:
            session.add(row)
        content = self.settings.home / "content"
        content.write_bytes(b"weights")
        self.services.store.put_file(content, f"{row.folder}/manifest.json")
        return model_id

    def spec(self, **fields: Any) -> dict[str, Any]:
        return {"dataset": self.dataset, **fields}

    def end(self, job_id: str, status: str) -> None:
        with self.database.write() as session:
            session.get_one(JobRow, job_id).status = status

    def delete(self, model_id: str) -> Any:
        return self.client.delete(f"/v1/models/{model_id}")

    def exists(self, model_id: str) -> tuple[bool, bool]:
        """Whether the row is there, and whether the files are."""
        with self.database.read() as session:
            row = repository.find(session, FIRST_PROJECT, model_id)
        return row is not None, self.services.store.exists(f"jobs/{model_id}/1/artifact")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("models"))
    yield house
    house.close()


def _taught_by(model_id: str) -> dict[str, Any]:
    return {"terms": [{"loss": "cross_entropy"}, {"loss": {"type": "kd", "teacher": model_id}}]}


USES: dict[str, Callable[[House, str], str]] = {
    "training it further": lambda house, model: submit(house.client, house.spec(model=model)),
    "learning from it": lambda house, model: submit(house.client, house.spec(loss=_taught_by(model))),
    "a comparison over it": lambda house, model: _compare(house, model=model),
    "a comparison with it as a teacher": lambda house, model: _compare(
        house, losses=["cross_entropy", _taught_by(model)]
    ),
}


def _compare(house: House, **spec: Any) -> str:
    reply = house.client.post("/v1/comparisons", json={**house.spec(losses=["cross_entropy", "focal"]), **spec})
    assert reply.status_code == 201, reply.text
    job_id: str = reply.json()["id"]
    return job_id


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_model_that_a_live_job_needs_is_kept_and_the_job_named(house: House, use: Callable[..., str]) -> None:
    model = house.add_model()
    job = use(house, model)
    for status in ("queued", "running", "paused"):
        house.end(job, status)
        refused = house.delete(model)
        assert (refused.status_code, error_of(refused)["code"]) == (409, "model_in_use")
        assert job in error_of(refused)["message"]
        assert house.exists(model) == (True, True)
    house.end(job, "failed")
    assert house.delete(model).status_code == 204
    assert house.exists(model) == (False, False)
    assert house.delete(model).status_code == 404


def test_a_job_that_only_speaks_of_a_model_does_not_need_it(house: House) -> None:
    model = house.add_model()
    submit(house.client, house.spec(name=model, metadata={"better_than": model}))
    assert house.delete(model).status_code == 204


def test_a_model_of_another_project_is_not_there(house: House) -> None:
    model = house.add_model()
    assert house.client_of_another_project().delete(f"/v1/models/{model}").status_code == 404
    assert house.exists(model) == (True, True)


def test_many_jobs_are_named_in_part() -> None:
    assert "is still used by a. " in InUseError("model", "m", ["a"]).message
    assert "is still used by a, b, c, d, e and 2 more. " in InUseError("model", "m", list("abcdefg")).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (lambda model: {"model": model}, "/model"),
        (lambda model: {"loss": _taught_by(model)}, "/loss/terms/1/loss/teacher"),
    ],
    ids=["start", "teacher"],
)
def test_a_job_whose_model_goes_while_it_is_submitted_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch, fields: Callable[[str], dict[str, Any]], param: str
) -> None:
    model = house.add_model()

    def delete_then_insert(*arguments: Any) -> Any:
        assert house.delete(model).status_code == 204
        return create_once(*arguments)

    monkeypatch.setattr(job_service, "create_once", delete_then_insert)
    refused = house.client.post("/v1/jobs", json=house.spec(**fields(model)))
    assert (refused.status_code, error_of(refused)["param"]) == (422, param)
    assert error_of(refused)["code"] == "model_not_found"


def test_a_job_that_is_being_submitted_keeps_its_model(tmp_path: Path, database_url: str) -> None:
    house = House(tmp_path, database_url=database_url)
    model = house.add_model()
    locked = threading.Event()

    def insert_slowly(database: Database, table: Any, idempotency: Any, insert: Callable[..., Any]) -> Any:
        def insert_and_linger(session: Any) -> Any:
            row = insert(session)
            locked.set()
            time.sleep(0.3)
            return row

        return create_once(database, table, idempotency, insert_and_linger)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(job_service, "create_once", insert_slowly)
        submitting = pool.submit(submit, house.client, house.spec(model=model))
        assert locked.wait(20)
        refused = house.delete(model)
        job = submitting.result()
    assert refused.status_code == 409
    assert job in error_of(refused)["message"]
    assert house.exists(model) == (True, True)
    house.close()


def test_files_that_cannot_be_removed_do_not_keep_the_model(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    model = house.add_model()

    def fail(_key: str) -> None:
        raise OSError("the store is away")

    monkeypatch.setattr(house.services.store, "delete", fail)
    assert house.delete(model).status_code == 204
    assert house.exists(model) == (False, True)


def test_a_model_that_is_deleted_while_it_is_downloaded_is_not_found(house: House) -> None:
    model = house.add_model()
    row = house.services.models.get_row(FIRST_PROJECT, model)
    assert house.client.delete(f"/v1/models/{model}").status_code == 204
    with pytest.raises(NotFoundError):
        house.services.models.write_zip(row)
    assert list(house.settings.scratch.glob("download-*")) == []
