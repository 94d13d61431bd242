"""Every route, whatever it is: no key, a wrong one, one without the scope, and one of another project get nowhere.

The routes are those of the OpenAPI document, so a new one is walked without being named here.
"""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.db.tables import AliasChangeRow, AliasRow, ModelRow
from app.ids import new_id
from app.keys.caller import FIRST_PROJECT, SCOPES
from app.keys.service import new_secret
from tests.service import AppHouse, error_of, tickets, tiny_base, tiny_spec, upload

OPEN = {"/healthz", "/readyz"}
# By how a path begins, the first that fits. A route that fits none fails the walk: decide who may call it.
SCOPE_OF = {
    "/v1/keys/current": "any",
    "/v1/losses": "any",
    "/v1/base_models": "any",
    "/v1/datasets": "datasets",
    "/v1/jobs": "jobs",
    "/v1/comparisons": "jobs",
    "/v1/prediction_batches": "jobs",
    "/v1/evaluations": "jobs",
    "/v1/models": "jobs",
    "/v1/aliases": "jobs",
    "/v1/predictions": "predict",
    "/metrics": "metrics",
    "/v1/keys": "admin",
    "/v1/projects": "admin",
    "/v1/audit": "admin",
}


# What the walk has not: jobs of other kinds (tests/app/jobs/test_bulk_routes.py and test_comparisons.py ask for theirs
# as a stranger), and a model's files (tests/app/predictions/test_routes.py does).
NOT_THERE = ("/v1/prediction_batches/", "/v1/evaluations/", "/v1/comparisons/", "/v1/models/{model_id}/download")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("walk") / "home", base_models={"tiny": tiny_base()})
    yield house
    house.close()


@pytest.fixture
def things(house: AppHouse) -> dict[str, str]:
    """Something of the first project for each parameter of a path; new ones for each test, as a walk deletes."""
    dataset = upload(house.client, tickets(30))
    job = house.client.post("/v1/jobs", json=tiny_spec(dataset)).json()["id"]
    model, alias = add_model_with_alias(house)
    return {
        "dataset_id": dataset,
        "job_id": job,
        "checkpoint_id": "ckpt_1",
        "model_id": model,
        "name": alias,
        "key_id": house.client.get("/v1/keys/current").json()["id"],
        "project_id": "proj_default",
        "loss_type": "focal",
        "type": "focal",
        "id": job,
    }


def add_model_with_alias(house: AppHouse) -> tuple[str, str]:
    """Their rows, which is all that says whose they are."""
    model, now = new_id("mdl"), time.time()
    alias = model.removeprefix("mdl_")
    named: dict[str, Any] = {"project_id": FIRST_PROJECT, "name": alias, "model_id": model, "created_at": now}
    description = {
        "head": "native",
        "base_model": "tiny",
        "task": {"type": "text_classification", "labels": ["a", "b"]},
        "takes_pairs": False,
        "spec": {"loss": {}},
        "serving": {"format": "onnx-float32", "reason": "as in a test"},
        "metrics": {},
        "report": {},
    }
    with house.database.write() as session:
        session.add(
            ModelRow(
                id=model,
                project_id=FIRST_PROJECT,
                job_id=new_id("job"),
                name="m",
                folder=f"jobs/{model}/1/artifact",
                description=description,
                bytes=1,
                extra={},
                created_at=now,
            )
        )
        session.flush()
        session.add(AliasRow(id=new_id("als"), changed_at=now, **named))
        session.add(AliasChangeRow(id=new_id("alc"), key_id="key_1", **named))
    return model, alias


def routes(house: AppHouse) -> list[tuple[str, str]]:
    paths = house.app.openapi()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods if path not in OPEN]


def call(client: TestClient, method: str, path: str, things: dict[str, str]) -> Any:
    filled = re.sub(r"\{(\w+)\}", lambda found: things[found[1]], path)
    # The order of refusals must not tell a stranger whether the body would do: none is sent.
    return client.request(method, filled)


def test_without_a_live_key_every_route_is_closed(house: AppHouse, things: dict[str, str]) -> None:
    revoked = house.client.post("/v1/keys", json={"name": "k", "scopes": ["admin"]}).json()
    house.client.delete(f"/v1/keys/{revoked['id']}")
    secrets = [None, "", "nonsense", new_secret(), house.secret[:-1] + "x", house.secret + "0", revoked["secret"]]
    for method, path in routes(house):
        for secret in secrets:
            reply = call(house.client_with(secret), method, path, things)
            assert reply.status_code == 401, f"{method} {path} with {secret}: {reply.status_code}"
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert error_of(reply)["type"] == "authentication_error"


def test_a_body_that_cannot_be_read_is_no_way_past_the_door(house: AppHouse) -> None:
    for method, path in routes(house):
        for secret in (None, new_secret()):
            client = house.client_with(secret)
            reply = client.request(method, path, content=b"{", headers={"Content-Type": "application/json"})
            assert reply.status_code == 401, f"{method} {path} with {secret}: {reply.status_code}"
            assert reply.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_gets_as_far_as_its_scopes_go(house: AppHouse, things: dict[str, str]) -> None:
    clients = {scope: house.client_with_scopes(scope) for scope in SCOPES if scope != "admin"}
    for method, path in routes(house):
        wanted = next(scope for prefix, scope in SCOPE_OF.items() if path.startswith(prefix))
        for scope, client in clients.items():
            reply = call(client, method, path, things)
            if wanted in (scope, "any"):
                assert reply.status_code not in (401, 403), f"{method} {path} with {scope}: {reply.text}"
                continue
            assert reply.status_code == 403, f"{method} {path} with {scope}: {reply.status_code}"
            error = error_of(reply)
            assert (error["type"], error["code"]) == ("permission_error", "missing_scope")
            assert f"scope '{wanted}', and this key has '{scope}'" in error["message"]


def test_what_one_project_holds_is_not_there_for_another(house: AppHouse, things: dict[str, str]) -> None:
    stranger, catalogues = house.client_of_another_project(), ("/v1/losses", "/v1/base_models", "/v1/keys/current")
    for method, path in routes(house):
        if path.startswith(catalogues) or path.startswith("/v1/projects") or path == "/metrics":
            continue
        reply = call(stranger, method, path, things)
        if method == "get" and not path.startswith(NOT_THERE):  # what nobody finds would prove nothing
            assert call(house.client, method, path, things).status_code == 200, path
        if "{" in path and method != "put":
            assert reply.status_code in (404, 422), f"{method} {path}: {reply.status_code} {reply.text}"
            if method in ("get", "delete"):
                assert reply.status_code == 404, f"{method} {path}: {reply.text}"
        elif method == "get":
            assert reply.status_code == 200
            if path not in ("/v1/keys", "/v1/audit"):  # it has a key of its own, whose making was noted elsewhere
                assert reply.json()["data"] == [], path
    text = stranger.get("/v1/keys").text + stranger.get("/v1/audit").text
    assert not any(thing in text for thing in (things["key_id"], things["job_id"], things["dataset_id"]))


def test_the_servers_own_routes_are_for_the_first_project_alone(house: AppHouse) -> None:
    stranger = house.client_of_another_project()
    for method, path in [
        ("GET", "/metrics"),
        ("GET", "/v1/projects"),
        ("GET", "/v1/projects/proj_default"),
        ("POST", "/v1/projects"),
        ("PATCH", "/v1/projects/proj_default"),
    ]:
        reply = stranger.request(method, path, json={"name": "x"} if method != "GET" else None)
        assert (reply.status_code, error_of(reply)["code"]) == (403, "operator_only"), path
    assert house.client.get("/metrics").status_code == 200
    assert house.client_with_scopes("metrics").get("/metrics").status_code == 200
