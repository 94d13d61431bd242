"""Limits over HTTP: what is refused, what a reply tells, and that two at once do not pass together."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.db.tables import ModelRow
from tests.service import AppHouse, error_of, submit, tickets, tiny_base, tiny_spec, upload


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path / "home", base_models={"tiny": tiny_base()})
    yield house
    house.close()


def limited(house: AppHouse, **limits: Any) -> TestClient:
    """A client of a project with these limits."""
    reply = house.client.post("/v1/projects", json={"name": "limited", "limits": limits})
    assert reply.status_code == 201, reply.text
    return house.client_with(reply.json()["key"]["secret"])


def with_key(client: TestClient, **limits: int) -> TestClient:
    """The same project by a key with these limits of its own."""
    reply = client.post("/v1/keys", json={"name": "k", "scopes": ["datasets", "jobs"], "limits": limits})
    assert reply.status_code == 201, reply.text
    return TestClient(client.app, headers={"Authorization": f"Bearer {reply.json()['secret']}"})


def test_a_reply_tells_how_much_of_a_rate_is_left(house: AppHouse) -> None:
    client = limited(house, requests_per_minute=3)
    replies = [client.get("/v1/jobs") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert {reply.headers.get("RateLimit-Policy") for reply in replies} == {'"requests-project";q=3;w=60'}
    assert [reply.headers["RateLimit"].split(";")[1] for reply in replies] == ["r=2", "r=1", "r=0", "r=0"]
    error = error_of(replies[3])
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "3 requests a minute" in error["message"]
    assert 1 <= int(replies[3].headers["Retry-After"]) <= 21


def test_a_keys_rate_holds_beside_its_projects(house: AppHouse) -> None:
    slow, fast = house.client_with_scopes("jobs", requests_per_minute=1), house.client_with_scopes("jobs")
    reply = slow.get("/v1/jobs")
    assert reply.headers["RateLimit-Policy"] == '"requests-key";q=1;w=60, "requests-project";q=6000;w=60'
    error = error_of(slow.get("/v1/jobs"))
    assert error["message"].startswith("This key may use 1 requests a minute")
    assert fast.get("/v1/jobs").status_code == 200


def test_predictions_have_no_limit_unless_one_is_set(house: AppHouse) -> None:
    body = {"model": "mdl_unknown", "input": "x"}
    free, bound = limited(house, requests_per_minute=1), limited(house, predictions_per_minute=2)
    assert {free.post("/v1/predictions", json=body).status_code for _ in range(10)} == {404}
    assert [bound.post("/v1/predictions", json=body).status_code for _ in range(4)] == [404, 404, 429, 429]
    assert bound.get("/v1/jobs").status_code == 200


def test_a_null_lifts_the_servers_own_limit(house: AppHouse) -> None:
    assert "RateLimit" not in limited(house, requests_per_minute=None).get("/v1/jobs").headers
    assert "q=6000;" in limited(house).get("/v1/jobs").headers["RateLimit-Policy"]


def test_a_days_upload_bytes_are_counted_as_they_came(house: AppHouse) -> None:
    content = tickets(20)
    client = limited(house, upload_bytes_per_day=2 * len(content) + 10)
    files = {"file": ("data.csv", content)}
    replies = [client.post("/v1/datasets", files=files) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [201, 201, 429]
    assert "upload bytes a day" in error_of(replies[2])["message"]
    error = error_of(client.post("/v1/datasets", files={"file": ("data.csv", tickets(200))}))
    assert error["code"] == "upload_over_limit"


def test_stored_bytes_bound_datasets_and_jobs_until_something_is_deleted(house: AppHouse) -> None:
    client = limited(house)
    dataset = upload(client, tickets(60))
    size = client.get(f"/v1/datasets/{dataset}").json()["bytes"]
    project = client.get("/v1/keys/current").json()["project"]
    house.client.patch(f"/v1/projects/{project}", json={"limits": {"stored_bytes": size + 10}})
    house.services.keys._remembered.clear()
    reply = client.post("/v1/datasets", files={"file": ("data.csv", tickets(60))})
    assert (reply.status_code, error_of(reply)["code"]) == (403, "storage_quota_exceeded")
    assert client.post("/v1/jobs", json=tiny_spec(dataset)).status_code == 201
    house.client.patch(f"/v1/projects/{project}", json={"limits": {"stored_bytes": size}})
    house.services.keys._remembered.clear()
    assert client.post("/v1/jobs", json=tiny_spec(dataset)).status_code == 403


def test_a_keys_upload_bytes_are_counted_beside_its_projects_and_a_refusal_takes_from_neither(house: AppHouse) -> None:
    content = tickets(20)
    project = limited(house, upload_bytes_per_day=2 * len(content))
    key = with_key(project, upload_bytes_per_day=len(content))
    files = {"file": ("data.csv", content)}
    replies = [client.post("/v1/datasets", files=files) for client in (key, key, project, project)]
    assert [reply.status_code for reply in replies] == [201, 429, 201, 429]
    assert error_of(replies[1])["message"].startswith("This key may use")
    assert error_of(replies[3])["message"].startswith("This project may use")
    error = error_of(key.post("/v1/datasets", files={"file": ("data.csv", tickets(200))}))
    assert (error["code"], "this key may upload" in error["message"]) == ("upload_over_limit", True)


def test_a_keys_live_jobs_are_its_own_and_those_of_the_keys_it_is_rotated_into(house: AppHouse) -> None:
    dataset = upload(house.client, tickets(30))
    submit(house.client, tiny_spec(dataset))
    made = house.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs"], "limits": {"live_jobs": 1}}).json()
    old = house.client_with(made["secret"])
    job = submit(old, tiny_spec(dataset))
    new = house.client_with(house.client.post(f"/v1/keys/{made['id']}/rotate").json()["secret"])
    for client in (old, new):
        error = error_of(client.post("/v1/jobs", json=tiny_spec(dataset)))
        assert error["code"] == "too_many_live_jobs"
        assert error["message"].startswith("This key has 1 jobs")
    house.client.post(f"/v1/jobs/{job}/cancel")
    submit(new, tiny_spec(dataset))


def test_a_keys_stored_bytes_are_its_datasets_and_the_models_of_its_jobs(house: AppHouse) -> None:
    files = {"file": ("data.csv", tickets(60))}
    size = house.client.post("/v1/datasets", files=files).json()["bytes"]
    client = with_key(house.client, stored_bytes=2 * size)
    lineage = client.get("/v1/keys/current").json()["id"]
    mine = upload(client, tickets(60))
    with house.database.write() as session:
        model = {"id": "mdl_a", "project_id": "proj_default", "job_id": "job_a", "name": "m", "folder": "m"}
        session.add(ModelRow(**model, description={}, extra={}, created_at=0.0, key_lineage=lineage, bytes=size - 10))
    error = error_of(client.post("/v1/datasets", files=files))
    assert (error["code"], f"This key stores {2 * size - 10:,} bytes" in error["message"]) == (
        "storage_quota_exceeded",
        True,
    )
    house.client.delete(f"/v1/datasets/{mine}")
    assert client.post("/v1/datasets", files=files).status_code == 201


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_of_many_who_submit_at_once_no_more_than_the_limit_pass(
    request: pytest.FixtureRequest, database: str, tmp_path: Path
) -> None:
    url = request.getfixturevalue("postgres_database_url") if database == "postgres" else None
    (tmp_path / "race").mkdir()
    house = AppHouse(tmp_path / "race", base_models={"tiny": tiny_base()}, database_url=url)
    try:
        client = limited(house, live_jobs=3)
        spec = tiny_spec(upload(client, tickets(30)))
        replies: list[Any] = []
        threads = [
            threading.Thread(target=lambda: replies.append(client.post("/v1/jobs", json=spec))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(reply.status_code for reply in replies) == [201] * 3 + [429] * 5
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert error_of(refused)["code"] == "too_many_live_jobs"
        assert refused.headers["Retry-After"]
        made = next(reply for reply in replies if reply.status_code == 201)
        assert client.post(f"{made.headers['Location']}/cancel").status_code == 202
        assert client.post("/v1/jobs", json=spec).status_code == 201
    finally:
        house.close()
