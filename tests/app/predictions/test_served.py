"""What a name stands for, while models are loaded, deleted and swapped; in this process and in another."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from app.db.tables import KeyRow
from app.http.services import Services
from app.keys.service import new_key
from app.main import create_app
from app.predictions import served
from app.predictions.served import ServedModels
from ml.inference.cache import ModelCache
from tests.app.predictions.house import House
from tests.callers import TEXT, Callers
from tests.service import AppHouse, error_of, wait_until

# What is changed in one process is seen by another within this time, what asking and loading take included.
SEEN_SECONDS = 2.0


class Replica:
    """Another process's application over the same database and files; its rounds run while it is entered."""

    def __init__(self, house: House, **settings: Any) -> None:
        self.app = create_app(house.settings.model_copy(update=settings), role="inference")
        self.services: Services = self.app.state.services
        self.client = TestClient(self.app, raise_server_exceptions=False, headers=house.client.headers)

    @property
    def served(self) -> ServedModels:
        return self.services.served

    def ask(self, name: str, client: TestClient | None = None) -> tuple[int, str]:
        """The status, and the model that answered or the error's code."""
        reply = (client or self.client).post("/v1/predictions", json={"model": name, "input": TEXT})
        return reply.status_code, reply.json()["model"] if reply.is_success else error_of(reply)["code"]

    def close(self) -> None:
        self.services.predictions.close()
        self.served.close()
        self.services.database.close()


@pytest.fixture
def replica(house: House) -> Iterator[Replica]:
    replica = Replica(house)
    yield replica
    replica.close()


@pytest.fixture
def name() -> str:
    """One that no other test has used."""
    return f"a-{uuid4().hex[:8]}"


def point(house: House, name: str, model: str) -> None:
    assert house.client.put(f"/v1/aliases/{name}", json={"model": model}).is_success


def key_of(house: House, name: str) -> tuple[str, str]:
    caller = house.services.keys.authenticate(house.secret)
    return caller.project_id, name


@contextlib.contextmanager
def slow_loads(monkeypatch: pytest.MonkeyPatch, model: str) -> Iterator[threading.Event]:
    """While loading this model waits to be allowed to end. Gives what tells that one has begun."""
    load, has_begun, may_end = ModelCache._load, threading.Event(), threading.Event()

    def wait(cache: ModelCache, artifact: Path, runtime: Path) -> Any:
        if artifact.name == model:
            has_begun.set()
            assert may_end.wait(30)
        return load(cache, artifact, runtime)

    monkeypatch.setattr(ModelCache, "_load", wait)
    try:
        yield has_begun
    finally:
        may_end.set()


# -------------------------------------------------------------------------------------------------------- while asked


def connect(house: House) -> Callable[[], TestClient]:
    return lambda: house.client_with(house.secret)


def label_by(house: House, model: str) -> str:
    (result,) = house.predict(TEXT, model)
    return str(result["label"])


def test_an_alias_swapped_under_load_answers_wholly_by_one_version_or_the_other(house: House, name: str) -> None:
    turned = house.copy_model(is_turned=True)
    versions = {model: label_by(house, model) for model in (house.model, turned)}
    assert len(set(versions.values())) == 2
    point(house, name, house.model)
    with Callers(connect(house), name, versions) as callers:
        for _ in range(5):
            for model in (turned, house.model):
                point(house, name, model)
                callers.wait_for(model)
    assert callers.wrong == []
    assert set(callers.outcomes) == set(versions)


def test_a_model_deleted_under_load_answers_as_before_and_then_never_again(house: House) -> None:
    for _ in range(3):
        doomed = house.copy_model(is_turned=True)
        with Callers(connect(house), doomed, {doomed: label_by(house, doomed)}) as callers:
            callers.wait_for(doomed)
            assert house.client.delete(f"/v1/models/{doomed}").status_code == 204
            deleted_at = len(callers.outcomes)
            callers.wait_for("model_not_found")
        assert callers.wrong == []
        # Calls that were under way when the deletion was answered may still end.
        assert callers.outcomes[deleted_at:].count(doomed) <= 8
        assert callers.outcomes[-1] == "model_not_found"


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_model_deleted_while_it_is_loaded_is_not_found(
    house: House, monkeypatch: pytest.MonkeyPatch, replica: Replica, is_elsewhere: bool
) -> None:
    model = house.copy_model()
    client = replica.client if is_elsewhere else house.client
    with ThreadPoolExecutor(1) as pool:
        with slow_loads(monkeypatch, model) as has_begun:
            asked = pool.submit(replica.ask, model, client)
            assert has_begun.wait(10)
            assert house.client.delete(f"/v1/models/{model}").status_code == 204
        assert asked.result() == replica.ask(model, client) == (404, "model_not_found")


def test_a_model_deleted_between_its_load_and_its_answer_is_not_remembered(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = house.copy_model()
    load = ModelCache._load

    def load_and_forget(cache: ModelCache, artifact: Path, runtime: Path) -> Any:
        loaded = load(cache, artifact, runtime)
        if artifact.name == model:
            assert house.client.delete(f"/v1/models/{model}").status_code == 204
        return loaded

    monkeypatch.setattr(ModelCache, "_load", load_and_forget)
    house.predict(TEXT, model)  # it was there when it was asked for
    assert house.refuse(404, model=model, input=TEXT)["code"] == "model_not_found"
    assert model not in house.services.served._cache


def test_callers_of_a_model_that_loads_hold_up_no_caller_of_another(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = house.copy_model(), house.copy_model()
    house.predict(TEXT)
    with ThreadPoolExecutor(40) as pool:
        with slow_loads(monkeypatch, slow) as has_begun:
            waiting = [pool.submit(house.predict, TEXT, slow) for _ in range(40)]
            assert has_begun.wait(10)
            house.predict(TEXT)
            house.predict(TEXT, other)
            assert not any(future.done() for future in waiting)
        answers = [future.result(30) for future in waiting]
    assert all(answer == answers[0] for answer in answers)


# ------------------------------------------------------------------------------------------------- in another process


def test_another_process_goes_on_with_the_old_model_until_it_has_loaded_the_new_one(
    house: House, name: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = house.copy_model(), house.copy_model()
    point(house, name, old)
    assert replica.ask(name) == (200, old)
    with ThreadPoolExecutor(1) as pool, slow_loads(monkeypatch, new) as has_begun:
        pointed = pool.submit(point, house, name, new)
        assert has_begun.wait(10)
        replica.served.refresh()
        assert replica.ask(name) == (200, old)
        assert not pointed.done()
    pointed.result()
    with slow_loads(monkeypatch, new) as has_begun:
        replica.served.refresh()
        assert has_begun.wait(10)
        replica.served.refresh()
        assert replica.ask(name) == (200, old)
    wait_until(lambda: new in replica.served._cache, 10)
    replica.served.refresh()
    assert replica.ask(name) == (200, new)


def test_another_process_waits_for_the_new_model_where_the_old_one_was_deleted(
    house: House, name: str, replica: Replica
) -> None:
    old, new = house.copy_model(), house.copy_model()
    point(house, name, old)
    assert replica.ask(name) == (200, old)
    point(house, name, new)
    assert house.client.delete(f"/v1/models/{old}").status_code == 204
    replica.served.refresh()
    assert replica.ask(name) == (200, new)
    assert replica.ask(old) == (404, "model_not_found")
    assert old not in replica.served._cache


def test_another_process_that_cannot_load_the_new_model_goes_on_with_the_old_one_and_says_so(
    house: House, name: str, replica: Replica, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = house.copy_model(), house.copy_model()
    point(house, name, old)
    assert replica.ask(name) == (200, old)
    point(house, name, new)
    file = house.services.models._store.local_path(f"copies/{new}") / "minimand.json"
    whole = file.read_text()
    file.write_text(whole + " ")
    for _ in range(50):
        replica.served.refresh()
        time.sleep(0.01)
    assert replica.ask(name) == (200, old)
    assert caplog.text.count(f"model {new} cannot be loaded") == 1
    assert replica.served.behind == 1
    file.write_text(whole)
    monkeypatch.setitem(replica.served._retry_at, new, 0.0)
    replica.served.refresh()
    wait_until(lambda: new in replica.served._cache, 10)
    replica.served.refresh()
    assert replica.ask(name) == (200, new)
    assert replica.served.behind == 0


def test_what_a_call_has_found_out_meanwhile_is_not_overwritten_by_an_older_look(
    house: House, name: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = house.copy_model(), house.copy_model()
    point(house, name, old)
    assert replica.ask(name) == (200, old)
    ids_of = replica.services.models.ids_of

    def look_and_dawdle(names: Any) -> Any:
        found = ids_of(names)
        point(house, name, new)
        monkeypatch.setattr(served.time, "monotonic", lambda now=time.monotonic: now() + served.MEMORY_SECONDS)
        assert replica.ask(name) == (200, new)
        return found

    monkeypatch.setattr(replica.services.models, "ids_of", look_and_dawdle)
    replica.served.refresh()
    assert replica.served._known[key_of(house, name)].model_id == new


def seconds_until(condition: Callable[[], bool]) -> float:
    begun = time.monotonic()
    wait_until(condition, 30)
    return time.monotonic() - begun


def test_replicas_learn_of_models_aliases_and_revoked_keys_within_two_seconds(house: House, name: str) -> None:
    stays, goes = house.copy_model(), house.copy_model()
    project_id, _ = key_of(house, name)
    key, secret = new_key(project_id, "k", ["predict"])
    with house.database.write() as session:
        session.add(key)
    point(house, name, goes)
    replica = Replica(house)
    revoked = TestClient(replica.app, headers={"Authorization": f"Bearer {secret}"})
    with replica.client:
        assert replica.ask(name) == replica.ask(goes) == replica.ask(goes, revoked) == (200, goes)
        assert replica.ask(new := house.copy_model()) == (200, new)
        point(house, name, stays)
        assert seconds_until(lambda: replica.ask(name) == (200, stays)) < SEEN_SECONDS
        assert house.client.delete(f"/v1/models/{goes}").status_code == 204
        assert seconds_until(lambda: replica.ask(goes) == (404, "model_not_found")) < SEEN_SECONDS
        assert house.client.delete(f"/v1/aliases/{name}").status_code == 204
        assert seconds_until(lambda: replica.ask(name) == (404, "model_not_found")) < SEEN_SECONDS
        assert replica.ask(stays, revoked) == (200, stays)
        with house.database.write() as session:
            session.get_one(KeyRow, key.id).revoked_at = time.time()
        assert seconds_until(lambda: replica.ask(stays, revoked)[0] == 401) < SEEN_SECONDS


def test_a_watched_name_costs_its_callers_no_query(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "WATCH_SECONDS", 0.05)
    replica = Replica(house)
    with replica.client:
        assert replica.ask(house.model)[0] == 200
        monkeypatch.setattr(replica.services.models, "get_row", None)
        until = time.monotonic() + served.MEMORY_SECONDS + 0.5
        while time.monotonic() < until:
            assert replica.ask(house.model)[0] == 200


# ------------------------------------------------------------------------------------------------------- ahead of calls


def ready(client: TestClient) -> tuple[int, str, str]:
    reply = client.get("/readyz")
    return reply.status_code, reply.json()["status"], reply.json()["parts"]["models"]


def test_models_to_preload_are_loaded_before_the_process_is_ready(
    house: House, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, told = house.copy_model(), house.copy_model()
    point(house, name, named)
    replica = Replica(house, preload=[name, told])
    assert ready(replica.client) == (503, "starting", "loading")
    with slow_loads(monkeypatch, told) as has_begun:
        replica.served.refresh()
        assert has_begun.wait(10)
        wait_until(lambda: named in replica.served._cache, 10)
        replica.served.refresh()
        assert ready(replica.client) == (503, "starting", "loading")
    wait_until(lambda: told in replica.served._cache, 10)
    replica.served.refresh()
    assert ready(replica.client)[2] == "ok"
    assert replica.served._known[key_of(house, name)].model_id == named
    replica.close()


def test_what_cannot_be_preloaded_is_told_once_and_loaded_once_it_can_be(
    house: House, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    unfit = house.copy_model()
    house.spoil(unfit)
    replica = Replica(house, preload=[name, unfit])
    for _ in range(50):
        replica.served.refresh()
        time.sleep(0.01)
    assert ready(replica.client) == (200, "degraded", "missing")
    assert caplog.text.count(f"MINIMAND_PRELOAD names '{name}'") == 1
    assert caplog.text.count(f"model {unfit} cannot be loaded") == 1
    point(house, name, house.model)
    replica.served.refresh()
    wait_until(lambda: house.model in replica.served._cache, 10)
    replica.served.refresh()
    assert replica.served._preload == {name: "ok", unfit: "missing"}
    replica.close()


def test_names_to_preload_come_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIMAND_PRELOAD", json.dumps(["production", "mdl_1"]))
    house = AppHouse(tmp_path)
    assert list(house.services.served._preload) == ["production", "mdl_1"]
    house.close()
