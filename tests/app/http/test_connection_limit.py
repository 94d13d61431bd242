"""A process keeps files for its own work: with too many connections, all but /healthz is refused, and closed."""

import resource
from collections.abc import Iterator

import pytest

from app.cli import _OPEN_FILES, _allow_open_files
from app.http.connection_limit import OWN_FILES, most_connections
from tests.service import AppHouse, error_of


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("limit") / "home")
    house.app.state.max_connections = 2
    yield house
    house.close()


def test_up_to_the_limit_calls_are_answered(house: AppHouse) -> None:
    house.app.state.connections = {1, 2}
    assert house.client.get("/v1/models").status_code == 200


def test_beyond_it_they_are_refused_in_the_one_shape_and_closed(house: AppHouse) -> None:
    house.app.state.connections = {1, 2, 3}
    reply = house.client.get("/v1/models")
    assert (reply.status_code, error_of(reply)["code"]) == (503, "too_many_connections")
    assert (reply.headers["connection"], reply.headers["retry-after"]) == ("close", "1")
    assert house.client.get("/healthz").status_code == 200


def test_a_process_allows_itself_more_open_files_than_the_usual_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = [(1_024, 1 << 20)]
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, both: limits.append(both))
    assert _allow_open_files() == _OPEN_FILES
    assert limits[-1] == (_OPEN_FILES, 1 << 20)


@pytest.mark.parametrize("files", [10, 256, 1_024, 65_536])
def test_some_files_are_left_for_the_process_itself(files: int) -> None:
    assert files - most_connections(files) >= min(OWN_FILES, files // 2)
    assert most_connections(files) >= files // 2
