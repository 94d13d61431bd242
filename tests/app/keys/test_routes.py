"""Keys over HTTP: shown once, for what their scopes name, replaced without a pause, and gone when revoked."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.db.tables import KeyRow
from app.keys import service
from tests.service import AppHouse, error_of


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path / "home")
    yield house
    house.close()


def make(house: AppHouse, **asked: Any) -> dict[str, Any]:
    reply = house.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs"], **asked})
    assert reply.status_code == 201, reply.text
    assert reply.headers["Location"] == f"/v1/keys/{reply.json()['id']}"
    key: dict[str, Any] = reply.json()
    return key


def status_with(house: AppHouse, secret: str) -> int:
    return house.client_with(secret).get("/v1/jobs").status_code


def test_the_secret_is_shown_once_and_kept_nowhere(house: AppHouse) -> None:
    key = make(house, name="ci", scopes=["jobs", "predict"], expires_in_days=1, limits={"requests_per_minute": 9})
    secret = key.pop("secret")
    assert secret.startswith(key["hint"])
    assert key == house.client.get(f"/v1/keys/{key['id']}").json() | {"last_used_at": None}
    assert (key["name"], key["scopes"], key["limits"]["requests_per_minute"]) == ("ci", ["jobs", "predict"], 9)
    assert key["expires_at"] == pytest.approx(time.time() + 86_400, abs=60)
    listed = house.client.get("/v1/keys").text
    files = [file.read_bytes() for file in house.settings.home.rglob("*sqlite3*")]
    assert key["id"] in listed
    assert secret not in listed
    assert files
    assert not any(secret[10:30].encode() in content for content in files)


def test_a_key_tells_who_it_is(house: AppHouse) -> None:
    key = make(house, scopes=["predict"])
    current = house.client_with(key["secret"]).get("/v1/keys/current").json()
    assert (current["id"], current["project"], current["scopes"]) == (key["id"], "proj_default", ["predict"])


def test_a_revoked_key_opens_nothing_and_stays_listed(house: AppHouse) -> None:
    key = make(house)
    assert status_with(house, key["secret"]) == 200
    for _ in range(2):
        assert house.client.delete(f"/v1/keys/{key['id']}").status_code == 204
        assert status_with(house, key["secret"]) == 401
    assert house.client.get(f"/v1/keys/{key['id']}").json()["revoked_at"] == pytest.approx(time.time(), abs=60)


def test_an_expired_key_opens_nothing(house: AppHouse) -> None:
    key = make(house, expires_in_days=0.000_01)  # 0.9 s
    assert status_with(house, key["secret"]) == 200
    time.sleep(1)
    house.services.keys._remembered.clear()  # within two seconds by itself
    assert status_with(house, key["secret"]) == 401


def test_of_all_calls_with_a_key_one_asks_again_before_none_may_go_without(
    house: AppHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, secret, ahead = house.services.keys, make(house)["secret"], 0.0
    monkeypatch.setattr(service.time, "monotonic", lambda now=time.monotonic: now() + ahead)
    caller = keys.authenticate(secret)
    assert keys.recall(secret) == caller
    ahead = service.MEMORY_SECONDS * 0.75
    assert [keys.recall(secret) for _ in range(3)] == [None, caller, caller]
    keys.authenticate(secret)
    ahead = service.MEMORY_SECONDS * 1.2  # beyond the first memory, within the second
    assert keys.recall(secret) == caller
    ahead = service.MEMORY_SECONDS * 2
    assert [keys.recall(secret) for _ in range(3)] == [None] * 3


def test_two_keys_live_while_one_takes_the_others_place(house: AppHouse) -> None:
    old = make(house, name="ci", limits={"requests_per_minute": 500})
    new = house.client.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_seconds": 3600})
    assert (new.status_code, new.headers["Location"]) == (201, f"/v1/keys/{new.json()['id']}")
    assert {name: new.json()[name] for name in ("name", "scopes", "limits", "expires_at")} == {
        name: old[name] for name in ("name", "scopes", "limits", "expires_at")
    }
    assert status_with(house, old["secret"]) == status_with(house, new.json()["secret"]) == 200
    shown = house.client.get(f"/v1/keys/{old['id']}").json()
    assert shown["expires_at"] == pytest.approx(time.time() + 3600, abs=60)
    newest = house.client.post(f"/v1/keys/{new.json()['id']}/rotate", json={"overlap_seconds": 0}).json()
    assert status_with(house, new.json()["secret"]) == 401
    assert status_with(house, newest["secret"]) == 200


def test_a_repeated_rotation_makes_one_key_and_shows_its_secret_once(house: AppHouse) -> None:
    key = make(house)
    path, headers = f"/v1/keys/{key['id']}/rotate", {"Idempotency-Key": "once"}
    first, again = (house.client.post(path, json={}, headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"] != key["id"]
    assert (again["secret"], first["secret"][:3]) == (None, "mk_")


def test_a_rotation_shortens_a_life_and_never_lengthens_it(house: AppHouse) -> None:
    key = make(house, expires_in_days=0.01)
    house.client.post(f"/v1/keys/{key['id']}/rotate")
    assert house.client.get(f"/v1/keys/{key['id']}").json()["expires_at"] == key["expires_at"]


def test_a_key_is_rotated_once_while_its_successor_lives(house: AppHouse) -> None:
    old = house.client.post("/v1/keys", json={"name": "once", "scopes": ["jobs"]}).json()
    path = f"/v1/keys/{old['id']}/rotate"
    new = house.client.post(path, json={"overlap_seconds": 3600}).json()
    refused = house.client.post(path, json={"overlap_seconds": 3600})
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "key_rotated"
    assert f"rotated into '{new['id']}'" in error_of(refused)["message"]
    assert house.client.delete(f"/v1/keys/{new['id']}").status_code == 204
    assert house.client.post(path, json={"overlap_seconds": 3600}).status_code == 201


def test_a_key_that_lives_no_more_cannot_be_rotated(house: AppHouse) -> None:
    key = make(house)
    house.client.delete(f"/v1/keys/{key['id']}")
    reply = house.client.post(f"/v1/keys/{key['id']}/rotate", json={})
    assert (reply.status_code, error_of(reply)["code"]) == (409, "key_not_live")


def test_the_last_admin_key_stays(house: AppHouse) -> None:
    admin = house.client.get("/v1/keys/current").json()["id"]
    reply = house.client.delete(f"/v1/keys/{admin}")
    assert (reply.status_code, error_of(reply)["code"]) == (409, "last_admin_key")
    other = make(house, scopes=["admin"])
    assert house.client.delete(f"/v1/keys/{admin}").status_code == 204
    assert status_with(house, other["secret"]) == 200


def test_a_repeat_makes_no_second_key_and_shows_no_secret(house: AppHouse) -> None:
    body, headers = {"name": "k", "scopes": ["jobs"]}, {"Idempotency-Key": "once"}
    first, again = (house.client.post("/v1/keys", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"]
    assert again["secret"] is None
    reply = house.client.post("/v1/keys", json={**body, "name": "other"}, headers=headers)
    assert error_of(reply)["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["jobs", "jobs"]}, "/scopes"),
        ({"scopes": ["job"]}, "/scopes/0"),
        ({"name": ""}, "/name"),
        ({"expires_in_days": 0}, "/expires_in_days"),
        ({"expires_in_days": True}, "/expires_in_days"),
        ({"limits": {"live_jobs": True}}, "/limits/live_jobs"),
        ({"expires_in_days": 1e9}, "/expires_in_days"),
        ({"limits": {"requests_per_minute": 0}}, "/limits/requests_per_minute"),
        ({"limits": {"live_job": 5}}, "/limits/live_job"),
        ({"secret": "mk_mine"}, "/secret"),
    ],
)
def test_what_makes_no_key_is_refused_with_its_place(house: AppHouse, body: dict[str, Any], param: str) -> None:
    reply = house.client.post("/v1/keys", json={"name": "k", "scopes": ["jobs"], **body})
    assert (reply.status_code, error_of(reply)["param"]) == (422, param)


def test_a_word_that_is_no_key_costs_no_query_and_an_unknown_one_a_single_query(
    house: AppHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.keys import repository
    from app.keys.service import new_secret

    asked: list[str] = []
    find = repository.find_by_secret
    monkeypatch.setattr(
        repository, "find_by_secret", lambda session, digest, now: asked.append(digest) or find(session, digest, now)
    )
    for word in ("nonsense", "mk_" + "0" * 46, house.secret.upper()):
        assert status_with(house, word) == 401
    assert asked == []
    unknown = new_secret()
    assert {status_with(house, unknown) for _ in range(20)} == {401}
    assert len(asked) == 1


def test_when_a_key_was_last_used_is_known(house: AppHouse) -> None:
    key = make(house)
    assert status_with(house, key["secret"]) == 200
    house.services.keys.note_uses()
    used = house.client.get(f"/v1/keys/{key['id']}").json()["last_used_at"]
    assert used == pytest.approx(time.time(), abs=60)
    with house.database.write() as session:
        session.get_one(KeyRow, key["id"]).last_used_at = used + 100  # another process saw it later
    house.services.keys._uses[key["id"]] = used
    house.services.keys.note_uses()
    assert house.client.get(f"/v1/keys/{key['id']}").json()["last_used_at"] == used + 100
