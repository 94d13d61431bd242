"""Requests are counted by the template of their path, and what the rows say is told by the API alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from app import census
from app.main import create_app
from tests.service import AppHouse

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path / "home", min_free_bytes=0)
    yield house
    house.close()


def samples(client: TestClient) -> Samples:
    """Every series: its name, and its labels' values in the order of their names."""
    families = text_string_to_metric_families(client.get("/metrics").raise_for_status().text)
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def requests(found: Samples) -> Samples:
    """Those but of /metrics itself: by method, template and status."""
    return {
        key[1:]: value
        for key, value in found.items()
        if key[0] == "minimand_http_requests_total" and key[2] != "/metrics"
    }


def test_requests_count_by_template_however_many_things_are_asked_for(house: AppHouse) -> None:
    for name in ("job_1", "job_2"):
        house.client.get(f"/v1/jobs/{name}")
    house.client.get("/v1/jobs")
    house.client_with(None).get("/v1/jobs")
    found = samples(house.client)
    assert requests(found) == {
        ("GET", "/v1/jobs/{job_id}", "404"): 2,
        ("GET", "/v1/jobs", "200"): 1,
        ("GET", "/v1/jobs", "401"): 1,
    }
    assert found["minimand_http_request_seconds_count", "GET", "/v1/jobs"] == 2
    assert found["minimand_http_request_seconds_sum", "GET", "/v1/jobs"] > 0


def test_what_a_stranger_makes_up_makes_no_series_of_its_own(house: AppHouse) -> None:
    for path in ("/v1/nowhere", "/wp-login.php", "/docs/../x"):
        house.client.get(path)
    house.client.request("BREW", "/v1/jobs")
    house.client.request("STIR", "/v1/jobs")
    assert requests(samples(house.client)) == {("GET", "none", "404"): 3, ("other", "/v1/jobs", "405"): 2}


def test_predictions_count_also_those_that_no_router_sees(house: AppHouse) -> None:
    body = {"model": "mdl_1", "input": "x"}
    for _ in range(2):  # the second by the short way, as its key was checked a moment ago
        house.client.post("/v1/predictions", json=body)
    house.client.post("/v1/predictions", json={})
    found = requests(samples(house.client))
    assert found == {("POST", "/v1/predictions", "404"): 2, ("POST", "/v1/predictions", "422"): 1}


def test_a_fault_of_ours_counts_as_500(house: AppHouse) -> None:
    @house.app.get("/fails/{what}")
    def fail(what: str) -> None:
        raise RuntimeError(what)

    house.client.get("/fails/now")
    assert requests(samples(house.client)) == {("GET", "/fails/{what}", "500"): 1}


def test_parts_are_up_or_not_as_readyz_says(house: AppHouse) -> None:
    found = samples(house.client)
    parts = house.client.get("/readyz").json()["parts"]
    up = {key[1]: value for key, value in found.items() if key[0] == "minimand_part_up"}
    assert up == {
        part: state in ("ok", "none") and (part, state) != ("worker", "none") for part, state in parts.items()
    }
    assert (up["database"], up["worker"]) == (1, 0)


def test_the_rows_are_told_by_the_api_and_not_by_a_replica(house: AppHouse) -> None:
    assert samples(house.client)["minimand_queue_jobs", "cpu"] == 0
    replica = create_app(house.settings, role="inference")
    told = {key[0] for key in samples(TestClient(replica, headers=house.client.headers))}
    replica.state.services.predictions.close()
    replica.state.services.served.close()
    assert "minimand_part_up" in told
    assert not {name for name in told if name.startswith(("minimand_job", "minimand_queue", "minimand_worker"))}


def test_rows_are_counted_once_for_those_who_ask_at_once(house: AppHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    take = census.take_census
    monkeypatch.setattr(census, "take_census", lambda *given, **named: counted.append(1) or take(*given, **named))
    for _ in range(3):
        samples(house.client)
    assert len(counted) == 1
