"""The documentation, the OpenAPI document, the health checks, and what importing the service loads."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import make_url

from app.main import create_app
from app.settings import Settings
from tests.service import AppHouse, error_of

OPEN = {"/healthz", "/readyz"}  # of the paths in the OpenAPI document; the others are pages
METHODS = {"get", "put", "post", "delete", "patch"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("docs"))
    yield house
    house.close()


@pytest.fixture(scope="module")
def stranger(house: AppHouse) -> TestClient:
    """Somebody without a key."""
    return house.client_with(None)


@pytest.fixture(scope="module")
def document(stranger: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = stranger.get("/openapi.json").raise_for_status().json()
    return found


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_open_without_a_key_and_without_the_internet(stranger: TestClient, page: str) -> None:
    reply = stranger.get(page)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    linked = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)["']""", reply.text)
    assert linked
    for address in linked:
        assert re.match(r"/(?!/)", address), f"{address} is not on this machine"
        assert stranger.get(address).status_code == 200
    assert not re.search(r"""["'(](?:https?:)?//""", reply.text)
    assert reply.headers["content-security-policy"].startswith("default-src 'self' ")  # nor do the scripts
    assert "/openapi.json" in reply.text


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(address := node.get("$ref"), str):
                here: Any = document
                for step in address.removeprefix("#/").split("/"):
                    here = here[step.replace("~1", "/").replace("~0", "~")]
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(document)


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    assert document["info"]["title"] == "Minimand"
    tags = {tag["name"] for tag in document["tags"]}
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(ids)) == len(ids)
    for method, path, operation in _operations(document):
        name = f"{method} {path}"
        assert operation["summary"], name
        assert operation["tags"], name
        assert set(operation["tags"]) <= tags, name
        good = [code for code in operation["responses"] if code.startswith("2")]
        assert good, name
        assert all(operation["responses"][code]["description"] for code in operation["responses"]), name


def test_errors_are_described_in_their_one_shape(document: dict[str, Any]) -> None:
    for method, path, operation in _operations(document):
        for code, response in operation["responses"].items():
            if code.startswith("4"):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, f"{method} {path} {code}"
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_operation_but_the_open_ones_declares_the_bearer_key(document: dict[str, Any]) -> None:
    (scheme,) = [
        name
        for name, scheme in document["components"]["securitySchemes"].items()
        if (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    ]
    for method, path, operation in _operations(document):
        expected = None if path in OPEN else [{scheme: []}]
        assert operation.get("security", document.get("security")) == expected, f"{method} {path}"


def test_every_operation_but_the_open_ones_asks_for_a_key(document: dict[str, Any], stranger: TestClient) -> None:
    for method, path, _ in _operations(document):
        for headers in ({}, {"Authorization": "Bearer mk_wrong"}, {"Authorization": "Basic Zm9vOmJhcg=="}):
            reply = stranger.request(method, re.sub(r"\{\w+\}", "some_id", path), headers=headers)
            if path in OPEN:
                assert reply.status_code == 200
            else:
                assert reply.status_code == 401, f"{method} {path}"
                assert reply.headers["www-authenticate"] == "Bearer"
                assert error_of(reply)["type"] == "authentication_error"


def test_every_property_of_a_job_spec_can_be_found_in_the_document(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/JobSpec") or "JobSpec" in str(body)
    assert schemas["JobSpec"]["required"] == ["dataset"]
    assert schemas["JobSpec"]["additionalProperties"] is False
    for loss in ("CrossEntropySpec", "FocalSpec"):
        assert schemas[loss]["properties"]["type"]["const"]
    assert schemas["FocalSpec"]["properties"]["gamma"]["description"]


def test_an_inference_replica_serves_predictions_and_no_jobs(tmp_path: Path) -> None:
    house = AppHouse(tmp_path)
    replica = TestClient(create_app(house.settings, role="inference"), headers=house.client.headers)
    assert replica.get("/healthz").status_code == 200
    assert replica.get("/docs").status_code == 200
    paths = set(replica.get("/openapi.json").json()["paths"])
    assert paths == {"/healthz", "/readyz", "/metrics", "/v1/predictions"}
    assert replica.get("/v1/jobs").status_code == 404
    house.close()


def test_base_models_are_a_list_like_any_other(house: AppHouse) -> None:
    page = house.client.get("/v1/base_models").raise_for_status().json()
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", False, "minilm", "minilm")
    (minilm,) = page["data"]
    assert (minilm["id"], minilm["object"], minilm["hidden_size"]) == ("minilm", "base_model", 384)


def test_it_is_ready_with_a_database_and_says_503_once_that_is_gone(
    postgres_server: str, postgres_database_url: str, tmp_path: Path
) -> None:
    house = AppHouse(tmp_path, database_url=postgres_database_url)
    client = house.client_with(None)
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["database"]) == (200, "ok")
    # Gone while we are connected: every connection is cut, and no new one let in.
    name = make_url(postgres_database_url).database
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        reply = client.get("/readyz")
        assert (reply.status_code, reply.json()["status"]) == (503, "unwell")
        assert {reply.json()["parts"][name] for name in ("database", "worker")} == {"unreachable", "unknown"}
        assert client.get("/healthz").json() == {"status": "ok"}
        refused = house.client.get("/v1/jobs")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "database_unavailable")
        assert refused.headers["retry-after"]
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert client.get("/readyz").status_code == 200
    house.close()


def test_importing_the_service_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, app.main; print(*sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_the_service_starts_in_about_a_second(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    started = time.monotonic()
    create_app(settings)
    assert time.monotonic() - started < 1
