"""Every change is noted with whose key asked for it, and nothing that was refused is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from app.db.tables import AuditRow
from tests.service import AppHouse, error_of, tickets, tiny_base, tiny_spec, upload


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path / "home", base_models={"tiny": tiny_base()})
    yield house
    house.close()


def changes(house: AppHouse, **asked: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.client.get("/v1/audit", params={"order": "asc", **asked}).json()["data"]
    return found


def test_each_change_names_its_key_and_its_target(house: AppHouse) -> None:
    client = house.client_with_scopes("datasets", "jobs")
    key = client.get("/v1/keys/current").json()["id"]
    admin = house.client.get("/v1/keys/current").json()["id"]
    dataset = upload(client, tickets(30))
    job = client.post("/v1/jobs", json=tiny_spec(dataset)).json()["id"]
    for verb in ("pause", "resume", "cancel"):
        assert client.post(f"/v1/jobs/{job}/{verb}").status_code == 202
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert house.client.delete(f"/v1/keys/{key}").status_code == 204
    assert [(one["action"], one["target"], one["key"]) for one in changes(house)] == [
        ("key.created", key, admin),
        ("dataset.created", dataset, key),
        ("job.submitted", job, key),
        ("job.paused", job, key),
        ("job.resumed", job, key),
        ("job.cancelled", job, key),
        ("dataset.deleted", dataset, key),
        ("key.revoked", key, admin),
    ]
    assert [one["action"] for one in changes(house, target=dataset)] == ["dataset.created", "dataset.deleted"]
    assert [one["target"] for one in changes(house, action="key.revoked")] == [key]
    assert len(changes(house, key=key)) == 6


def test_what_was_refused_is_not_noted(house: AppHouse) -> None:
    assert house.client.delete("/v1/datasets/ds_none").status_code == 404
    assert house.client.post("/v1/jobs", json={"dataset": "ds_none"}).status_code == 422
    admin = house.client.get("/v1/keys/current").json()["id"]
    assert error_of(house.client.delete(f"/v1/keys/{admin}"))["code"] == "last_admin_key"
    assert changes(house) == []


def test_a_change_that_cannot_be_noted_is_not_made(house: AppHouse) -> None:
    dataset = upload(house.client, tickets(30))
    key = house.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs"]}).json()["id"]
    job = house.client.post("/v1/jobs", json=tiny_spec(dataset)).json()["id"]

    def state() -> list[Any]:
        things = [house.client.get(f"/v1/{kind}").json()["data"] for kind in ("datasets", "jobs", "keys", "projects")]
        return [{**thing, "last_used_at": None} for each in things for thing in each]

    def fail(*_: object) -> None:
        raise RuntimeError("no note")

    before, noted = state(), changes(house)
    event.listen(AuditRow, "before_insert", fail)
    try:
        for method, path, body in [
            ("DELETE", f"/v1/keys/{key}", None),
            ("POST", "/v1/keys", {"name": "other", "scopes": ["jobs"]}),
            ("POST", "/v1/jobs", tiny_spec(dataset)),
            ("POST", f"/v1/jobs/{job}/cancel", None),
            ("POST", "/v1/projects", {"name": "other"}),
        ]:
            assert house.client.request(method, path, json=body).status_code == 500, path
    finally:
        event.remove(AuditRow, "before_insert", fail)
    assert (state(), changes(house)) == (before, noted)
