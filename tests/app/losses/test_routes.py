"""`GET /v1/losses`: every loss there is, told from its spec class, with an example that a job accepts."""

from collections.abc import Iterator

import pytest
from pydantic import TypeAdapter

from ml.specs.losses.composition import Loss
from ml.specs.losses.table import LOSS_SPECS
from tests.service import AppHouse, all_items, error_of


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("losses"))
    yield house
    house.close()


def test_every_loss_is_listed_with_its_formula_paper_schema_and_an_example_that_validates(house: AppHouse) -> None:
    page = house.client.get("/v1/losses").raise_for_status().json()
    assert [body["id"] for body in page["data"]] == list(LOSS_SPECS)
    for body in page["data"]:
        assert (body["object"], body["type"]) == ("loss", body["id"])
        assert body["title"] and body["formula"] and body["paper"] and body["tasks"]
        assert body["schema"]["properties"]["type"]["const"] == body["id"]
        assert set(body["defaults"]) <= set(body["schema"]["properties"])
        assert TypeAdapter(Loss).validate_python(body["example"]).type == body["id"]


def test_a_task_narrows_the_list_to_its_own_losses(house: AppHouse) -> None:
    page = house.client.get("/v1/losses", params={"task": "ordinal"}).raise_for_status().json()
    assert {"coral", "corn", "cross_entropy"} <= {body["id"] for body in page["data"]}
    assert all("ordinal" in body["tasks"] for body in page["data"])
    assert len(page["data"]) < len(LOSS_SPECS)


def test_pages_in_either_order_hold_every_loss_once(house: AppHouse) -> None:
    for order, expected in (("asc", list(LOSS_SPECS)), ("desc", list(LOSS_SPECS)[::-1])):
        assert [body["id"] for body in all_items(house.client, "/v1/losses", limit=7, order=order)] == expected
    reply = house.client.get("/v1/losses", params={"after": "focl"})
    assert (reply.status_code, error_of(reply)["code"], error_of(reply)["param"]) == (422, "invalid_cursor", "after")
    page = house.client.get("/v1/base_models", params={"after": "minilm"}).raise_for_status().json()
    assert (page["data"], page["has_more"], page["last_id"]) == ([], False, None)


def test_scores_are_told_from_probabilities(house: AppHouse) -> None:
    told = {name: house.client.get(f"/v1/losses/{name}").json()["has_probabilities"] for name in ("focal", "hinge")}
    assert told == {"focal": {"text_classification": True}, "hinge": {"text_classification": False}}


def test_an_unknown_loss_is_a_404_with_a_hint_and_an_unknown_task_is_refused(house: AppHouse) -> None:
    reply = house.client.get("/v1/losses/focl")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "loss_not_found")
    assert "Did you mean 'focal'?" in error_of(reply)["message"]
    assert house.client.get("/v1/losses", params={"task": "ranking"}).status_code == 422
