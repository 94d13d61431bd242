"""Every change is noted with whose key asked for it, and nothing that was refused is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
