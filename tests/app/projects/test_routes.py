"""Projects over HTTP: each begins with a key of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import AppHouse, error_of


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path / "home")
    yield house
    house.close()


def test_a_project_begins_with_an_admin_key_of_its_own(house: AppHouse) -> None:
    reply = house.client.post("/v1/projects", json={"name": "support", "limits": {"live_jobs": 5}})
    project = reply.json()
    assert (reply.status_code, reply.headers["Location"]) == (201, f"/v1/projects/{project['id']}")
    current = house.client_with(project["key"]["secret"]).get("/v1/keys/current").json()
    assert (current["project"], current["scopes"]) == (project["id"], ["admin"])
    shown = house.client.get(f"/v1/projects/{project['id']}").json()
    assert shown == {name: value for name, value in project.items() if name != "key"}
    assert {one["name"] for one in house.client.get("/v1/projects").json()["data"]} == {"support", "default"}


def test_a_repeat_makes_no_second_project_and_shows_no_secret(house: AppHouse) -> None:
    headers = {"Idempotency-Key": "once"}
    first, again = (house.client.post("/v1/projects", json={"name": "p"}, headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"]
    assert (again["key"], first["key"]["scopes"]) == (None, ["admin"])


def test_limits_are_changed_as_a_whole_and_the_name_by_itself(house: AppHouse) -> None:
    project = house.client.post("/v1/projects", json={"name": "p", "limits": {"live_jobs": 5}}).json()["id"]
    path = f"/v1/projects/{project}"
    assert house.client.patch(path, json={"name": "q"}).json()["limits"] == {"live_jobs": 5}
    changed = house.client.patch(path, json={"limits": {"stored_bytes": 7, "live_jobs": None}}).json()
    assert (changed["name"], changed["limits"]) == ("q", {"stored_bytes": 7, "live_jobs": None})
    assert house.client.get(path).json() == changed


def test_what_is_not_there_or_makes_no_sense_is_refused(house: AppHouse) -> None:
    assert error_of(house.client.get("/v1/projects/proj_none"))["code"] == "project_not_found"
    reply = house.client.post("/v1/projects", json={"name": "p", "limits": {"live_job": 5}})
    assert (reply.status_code, error_of(reply)["param"]) == (422, "/limits/live_job")
