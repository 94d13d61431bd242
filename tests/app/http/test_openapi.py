"""The OpenAPI document: the one in the repository is the served one, it is valid, and every operation is whole."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from app.http.docs import TAGS
from app.http.openapi import ERROR_BODY, HEADERS, METHODS, REFUSALS, Operation, operations
from tests.service import AppHouse, error_of, tickets, upload

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("openapi"))
    yield house
    house.close()


@pytest.fixture(scope="module")
def document(house: AppHouse) -> dict[str, Any]:
    found: dict[str, Any] = house.client_with(None).get("/openapi.json").raise_for_status().json()
    return found


@pytest.fixture(scope="module")
def every(document: dict[str, Any]) -> list[Operation]:
    return list(operations(document))


def test_the_document_in_the_repository_is_the_one_that_is_served(document: dict[str, Any]) -> None:
    stored = json.loads((ROOT / "openapi.json").read_text())
    assert stored == document, "run `make openapi`"


def test_it_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_a_schema_that_a_description_names_is_there(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", json.dumps(schemas)))
    assert "JobSpec" in named
    assert named <= set(schemas)


def test_operations_have_words_a_tag_and_a_short_id_of_their_own(every: list[Operation]) -> None:
    tags = [tag["name"] for tag in TAGS]
    ids = [one.body["operationId"] for one in every]
    assert len(set(ids)) == len(ids)
    for one in every:
        name = f"{one.method} {one.path}"
        assert one.body["operationId"].isidentifier(), name
        assert len(one.body["operationId"]) <= 40, name
        assert one.body["summary"], name
        assert one.body["description"].rstrip().endswith((".", "`", ":")), name
        assert len(one.body["tags"]) == 1, name
        assert one.body["tags"][0] in tags, name


def test_every_parameter_and_every_field_of_a_request_says_what_it_is(
    every: list[Operation], document: dict[str, Any]
) -> None:
    for one in every:
        for parameter in one.body.get("parameters", ()):
            assert parameter.get("description"), f"{one.method} {one.path}: {parameter['name']}"
        for content in one.body.get("requestBody", {}).get("content", {}).values():
            schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            for name, field in schema["properties"].items():
                referred = [*field.get("anyOf", ()), *field.get("oneOf", ())]
                assert field.get("description") or "$ref" in field or referred, f"{one.method} {one.path}: {name}"


def test_every_status_has_words_a_schema_and_its_headers(every: list[Operation]) -> None:
    for one in every:
        responses = one.body["responses"]
        assert any(status.startswith("2") for status in responses), one
        for status, response in responses.items():
            name = f"{one.method} {one.path} {status}"
            assert response["description"], name
            assert (status == "204") == ("content" not in response), name
            assert all("schema" in content for content in response.get("content", {}).values()), name
            assert "x-request-id" in response["headers"], name
            assert ("Location" in response["headers"]) == (status == "201"), name
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503")), name
            if status.startswith(("4", "5")) and one.path != "/readyz":
                assert response["content"]["application/json"]["schema"] == ERROR_BODY, name
                assert list(response["content"]) == ["application/json"], name


def test_what_a_route_may_refuse_follows_from_what_it_is(every: list[Operation]) -> None:
    for one in every:
        name, statuses = f"{one.method} {one.path}", set(one.body["responses"])
        assert {"401", "403", "429"} <= statuses or one.path in ("/healthz", "/readyz"), name
        assert not one.has_body or {"400", "413", "415", "422"} <= statuses, name
        assert "{" not in one.path or "404" in statuses, name


def test_every_call_that_creates_takes_an_idempotency_key(every: list[Operation]) -> None:
    creating = [one for one in every if one.method == "post" and "201" in one.body["responses"]]
    assert len(creating) >= 6
    for one in creating:
        assert "Idempotency-Key" in [parameter["name"] for parameter in one.body["parameters"]], one.path


def test_every_list_is_paged_alike(every: list[Operation], document: dict[str, Any]) -> None:
    lists = [
        one
        for one in every
        if "Page_" in str(one.body["responses"].get("200", {}).get("content", {}).get("application/json"))
    ]
    assert len(lists) >= 10
    for one in lists:
        names = [parameter["name"] for parameter in one.body["parameters"]]
        assert {"after", "limit", "order"} <= set(names), one.path


def test_no_component_is_left_over(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for kind in ("schemas", "headers", "examples"):
        for name in document["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, f"{kind}/{name}"
    assert set(document["components"]["headers"]) == set(HEADERS)


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/jobs/validate", "/v1/datasets/ds_none", "/v1/aliases/production", "/healthz"]
)
def test_a_path_tells_all_the_methods_it_answers(house: AppHouse, document: dict[str, Any], path: str) -> None:
    template = {"/v1/datasets/ds_none": "/v1/datasets/{dataset_id}", "/v1/aliases/production": "/v1/aliases/{name}"}
    documented = {method.upper() for method in document["paths"][template.get(path, path)]}
    asked = house.client.options(path)
    assert asked.status_code == 204
    refused = house.client.patch(path)
    assert (refused.status_code, error_of(refused)["code"]) == (405, "method_not_allowed")
    for reply in (asked, refused):
        assert set(reply.headers["allow"].split(", ")) - {"HEAD", "OPTIONS"} == documented


def test_what_a_path_does_not_answer_is_a_405_that_tells_what_it_does_however_like_an_id_it_looks(
    house: AppHouse, document: dict[str, Any]
) -> None:
    literal = {path: item for path, item in document["paths"].items() if "{" not in path}
    assert {"/v1/jobs/validate", "/v1/jobs/dry_run", "/v1/keys/current"} <= set(literal)
    for path, item in literal.items():
        for method in set(METHODS) - set(item):
            reply = house.client.request(method, path)
            assert (method, path, reply.status_code) == (method, path, 405)
            assert set(reply.headers["allow"].lower().split(", ")) - {"head", "options"} == set(item)


def test_what_is_no_id_is_no_path_and_the_document_tells_how_ids_look(house: AppHouse, every: list[Operation]) -> None:
    (job_id,) = next(one for one in every if one.path == "/v1/jobs/{job_id}").body["parameters"]
    assert job_id["schema"]["pattern"] == "^job_[^/]+$"
    reply = house.client.get("/v1/jobs/mdl_1")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "not_found")
    assert "begins with its kind" in error_of(reply)["message"]


def test_an_examples_code_is_one_that_the_service_answers() -> None:
    files = [file for part in ("app", "ml") for file in (ROOT / part).rglob("*.py") if file.name != "openapi.py"]
    source = "".join(file.read_text() for file in files)
    for status, refusal in REFUSALS.items():
        assert f'"{refusal.example["code"]}"' in source, status


def test_head_is_get_without_the_body(house: AppHouse) -> None:
    for path in ("/v1/losses", "/healthz", "/openapi.json", "/docs"):
        reply = house.client.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
        assert reply.headers["content-length"] == house.client.get(path).headers["content-length"]
    assert house.client.head("/v1/jobs/job_none").status_code == 404
    assert house.client_with(None).head("/v1/jobs").status_code == 401


def test_a_slash_at_the_end_is_another_path_and_leads_nowhere(house: AppHouse) -> None:
    reply = house.client.get("/v1/jobs/")
    assert reply.status_code == 404
    assert "none ends with a slash" in error_of(reply)["message"]
    assert house.client_with(None).get("/v1/jobs/").status_code == 401


def test_lists_of_what_has_metadata_filter_by_them(house: AppHouse, every: list[Operation]) -> None:
    paths = [one.path for one in every if any(p["name"] == "metadata" for p in one.body.get("parameters", ()))]
    assert paths == ["/v1/datasets", "/v1/jobs", "/v1/models"]
    mine, _ = (upload(house.client, tickets(9), metadata=json.dumps({"team": team})) for team in ("a", "b"))
    found = house.client.get("/v1/datasets", params={"metadata[team]": "a"}).json()["data"]
    assert [one["id"] for one in found] == [mine]
    for path in paths:
        refused = house.client.get(path, params={"metadata": "team"})
        assert (refused.status_code, error_of(refused)["param"]) == (422, "metadata")
        for pairs, status in ((16, 200), (17, 422), (300, 422)):  # more than a statement may join
            reply = house.client.get(path, params={f"metadata[{i}]": "x" for i in range(pairs)})
            assert reply.status_code == status, reply.text


def test_a_file_alone_can_be_sent_from_the_page(house: AppHouse, document: dict[str, Any]) -> None:
    """It fills each field of a form in with its example, or with "string", and sends those that are empty as well."""
    fields = document["components"]["schemas"]["Body_create_dataset"]["properties"]
    assert {name: field.get("examples") for name, field in fields.items() if name != "file"} == {
        name: [""] for name in ("name", "columns", "encoding", "delimiter", "metadata")
    }
    upload(house.client, tickets(9), **{name: "" for name in fields if name != "file"})
