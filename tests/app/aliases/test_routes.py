"""Aliases over HTTP: a name stands for a model that can be served, and what it stood for is kept."""

from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from app.db.tables import ModelRow
from tests.app.predictions.house import House
from tests.service import all_items, error_of, tickets, tiny_spec, upload

TEXT = "where is my parcel"


def put(house: House, name: str, model: str, client: TestClient | None = None) -> Any:
    return (client or house.client).put(f"/v1/aliases/{name}", json={"model": model})


@pytest.fixture
def name() -> str:
    """One that no other test has used."""
    return f"a-{uuid4().hex[:8]}"


def changes(house: House, name: str) -> list[str | None]:
    """What the alias came to stand for, the first first."""
    found = all_items(house.client, f"/v1/aliases/{name}/history", order="asc")
    assert all(change["object"] == "alias.change" and change["name"] == name for change in found)
    return [change["model"] for change in found]


def test_an_alias_is_made_pointed_elsewhere_and_deleted_and_every_change_is_kept(house: House, name: str) -> None:
    other = house.copy_model()
    made = put(house, name, house.model)
    assert (made.status_code, made.headers["location"]) == (201, f"/v1/aliases/{name}")
    assert set(made.json()) == {"id", "object", "name", "model", "created_at", "changed_at"}
    assert house.client.get(f"/v1/aliases/{name}").json() == made.json()
    moved = put(house, name, other)
    assert (moved.status_code, moved.json()["id"], moved.json()["model"]) == (200, made.json()["id"], other)
    assert moved.json()["changed_at"] > moved.json()["created_at"] == made.json()["created_at"]
    assert put(house, name, other).json() == moved.json()
    assert house.client.delete(f"/v1/aliases/{name}").status_code == 204
    assert error_of(house.client.get(f"/v1/aliases/{name}"))["code"] == "alias_not_found"
    assert house.client.delete(f"/v1/aliases/{name}").status_code == 404
    assert changes(house, name) == [house.model, other, None]
    (newest,) = house.client.get(f"/v1/aliases/{name}/history?limit=1").json()["data"]
    assert (newest["model"], newest["key"][:4]) == (None, "key_")


def test_aliases_are_listed_page_by_page(house: House, name: str) -> None:
    names = [f"{name}.{number}" for number in range(3)]
    for one in names:
        put(house, one, house.model)
    first = house.client.get("/v1/aliases?limit=2").json()
    rest = house.client.get(f"/v1/aliases?limit=100&after={first['last_id']}").json()
    assert [alias["name"] for alias in first["data"] + rest["data"]][:3] == names[::-1]


def test_a_prediction_says_which_model_answered_to_the_alias(house: House, name: str) -> None:
    put(house, name, house.model)
    body = house.client.post("/v1/predictions", json={"model": name, "input": TEXT}).json()
    assert body["model"] == house.model
    turned = house.copy_model(is_turned=True)
    put(house, name, turned)
    swapped = house.client.post("/v1/predictions", json={"model": name, "input": TEXT}).json()
    assert swapped["model"] == turned
    assert swapped["results"][0]["label"] != body["results"][0]["label"]
    house.client.delete(f"/v1/aliases/{name}")
    assert house.refuse(404, model=name, input=TEXT)["code"] == "model_not_found"


def test_an_alias_does_wherever_a_models_id_does(house: House, name: str) -> None:
    put(house, name, house.model)
    assert house.client.get(f"/v1/models/{name}").json()["id"] == house.model
    assert house.client.get(f"/v1/models/{name}/report").json()["id"] == house.model
    assert house.client.get(f"/v1/models/{name}/download").status_code == 200
    assert put(house, f"{name}-too", name).json()["model"] == house.model


def test_a_job_keeps_the_model_that_an_alias_stood_for(house: House, name: str) -> None:
    put(house, name, house.model)
    dataset = upload(house.client, tickets(60))
    distilled: Any = {"terms": [{"loss": "cross_entropy"}, {"loss": {"type": "kd", "teacher": name}}]}
    body = {**tiny_spec(dataset), "model": name, "loss": distilled}
    for reply in (house.client.post("/v1/jobs/validate", json=body), house.client.post("/v1/jobs", json=body)):
        assert reply.is_success, reply.text
        spec = reply.json()["spec"]
        assert (spec["model"], spec["loss"]["terms"][1]["loss"]["teacher"]) == (house.model, house.model)
    house.client.post(f"/v1/jobs/{reply.json()['id']}/cancel")
    compared = {
        "dataset": dataset,
        "model": name,
        "losses": ["cross_entropy", distilled],
        "seeds": 2,
        "training": {"max_length": 32},
    }
    reply = house.client.post("/v1/comparisons", json=compared)
    assert reply.status_code == 201, reply.text
    assert name not in str(reply.json()["spec"])
    house.client.post(f"/v1/jobs/{reply.json()['id']}/cancel")
    distilled["terms"][1]["loss"]["teacher"] = "nobody"
    refused = error_of(house.client.post("/v1/jobs/validate", json={**body, "loss": distilled}))
    assert (refused["param"], refused["code"]) == ("/loss/terms/1/loss/teacher", "model_not_found")


@pytest.mark.parametrize(
    "wrong", ["Production", "-a", "a b", "a" * 64, "mdl_", "mdl_1", f"job_{'0' * 32}", "tiny", "ü"]
)
def test_a_name_that_cannot_be_an_alias_is_refused(house: House, wrong: str) -> None:
    reply = put(house, wrong, house.model)
    error = error_of(reply)
    assert (reply.status_code, error["code"], error["param"]) == (422, "invalid_alias", "name")
    assert repr(wrong) in error["message"]


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}, {"model": "m", "more": 1}, []])
def test_a_body_that_names_no_model_is_refused(house: House, name: str, body: Any) -> None:
    assert house.client.put(f"/v1/aliases/{name}", json=body).status_code == 422


def test_an_alias_cannot_stand_for_what_is_not_there(house: House, name: str) -> None:
    for model in ("mdl_nowhere", name, house.job):
        reply = put(house, name, model)
        assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")
    assert house.client.get(f"/v1/aliases/{name}/history").status_code == 404


def test_an_alias_is_not_pointed_at_a_model_that_cannot_be_served(house: House, name: str) -> None:
    put(house, name, house.model)
    unfit = house.copy_model()
    house.spoil(unfit)
    reply = put(house, name, unfit)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "model_unfit")
    assert house.client.get(f"/v1/aliases/{name}").json()["model"] == house.model
    assert changes(house, name) == [house.model]
    house.predict(TEXT, name)


def test_a_model_that_an_alias_stands_for_is_not_deleted(house: House, name: str) -> None:
    model = house.copy_model()
    put(house, name, model)
    reply = house.client.delete(f"/v1/models/{model}")
    error = error_of(reply)
    assert (reply.status_code, error["code"]) == (409, "model_in_use")
    assert f"the alias '{name}' stands for" in error["message"]
    house.predict(TEXT, name)
    put(house, name, house.model)
    assert house.client.delete(f"/v1/models/{model}").status_code == 204
    assert changes(house, name) == [model, house.model]


def test_an_alias_of_another_project_is_not_there_and_may_be_made(house: House, name: str) -> None:
    put(house, name, house.model)
    other = house.client_of_another_project()
    for reply in (
        other.get(f"/v1/aliases/{name}"),
        other.get(f"/v1/aliases/{name}/history"),
        other.delete(f"/v1/aliases/{name}"),
        other.post("/v1/predictions", json={"model": name, "input": TEXT}),
        put(house, name, house.model, other),
    ):
        assert reply.status_code == 404
    assert other.get("/v1/aliases").json()["data"] == []
    assert house.client.get(f"/v1/aliases/{name}").json()["model"] == house.model


def test_the_database_itself_keeps_the_model_of_an_alias(house: House, name: str) -> None:
    model = house.copy_model()
    put(house, name, model)
    with pytest.raises(Exception, match=r"(?i)foreign key"), house.database.write() as session:
        session.delete(session.get_one(ModelRow, model))
