"""Every request body that the document shows runs as it stands, once its ids are those of things that are there."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.http.examples import DATASET_ID, MODEL_ID
from app.http.openapi import Operation, operations
from tests.app.http.house import ExampleHouse
from tests.service import error_of


class House(ExampleHouse):
    """Sends the examples."""

    def send(self, one: Operation, media_type: str, value: Any) -> Any:
        """The example, with our own ids in the place of its own."""
        text = json.dumps(value).replace(DATASET_ID, self.described).replace(MODEL_ID, self.model)
        path = one.path.replace("{name}", "production")
        if "{key_id}" in path:
            key = self.client.post("/v1/keys", json={"name": "k", "scopes": ["predict"]}).raise_for_status()
            path = path.replace("{key_id}", key.json()["id"])
        path = path.replace("{project_id}", "proj_default")
        if media_type == "application/json":
            return self.client.request(one.method, path, content=text, headers={"Content-Type": media_type})
        form = json.loads(text)
        return self.client.request(one.method, path, files={"file": ("tickets.csv", form.pop("file"))}, data=form)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("examples"))
    yield house
    house.close()


def test_every_request_body_has_examples_and_each_runs(house: House) -> None:
    with_body = [one for one in operations(house.app.openapi()) if one.has_body]
    assert len(with_body) >= 9
    for one in with_body:
        for media_type, content in one.body["requestBody"]["content"].items():
            assert content["examples"], one.path
            for name, example in content["examples"].items():
                reply = house.send(one, media_type, example["value"])
                assert reply.status_code in (200, 201), f"{one.method} {one.path} {name}: {reply.text}"
                assert example["summary"], name


def test_every_loss_says_an_example_that_a_job_takes(house: House) -> None:
    """Of the losses for one label; the others need other datasets."""
    losses = house.client.get("/v1/losses", params={"task": "text_classification"}).json()["data"]
    assert len(losses) > 15
    for loss in losses:
        if set(loss["needs"]) <= {"embeddings", "second_forward", "adversarial"}:
            beside = {"terms": [{"loss": "cross_entropy"}, {"loss": loss["example"]}]}
            example = beside if loss["is_auxiliary"] else loss["example"]
            body = {"dataset": house.dataset, "loss": example}
            reply = house.client.post("/v1/jobs/validate", json=body)
            labels = error_of(reply)["message"] if reply.status_code == 422 else ""
            assert reply.status_code == 200 or "two labels" in labels or "soft" in labels, f"{loss['id']}: {reply.text}"


def test_the_grammar_of_losses_stands_where_a_loss_is_typed(house: House) -> None:
    field = house.app.openapi()["components"]["schemas"]["JobSpec"]["properties"]["loss"]
    for word in ("terms", "weight", "schedule", "combine", "gradnorm", "class_weights", "effective_number"):
        assert f"`{word}`" in field["description"] or f'"{word}"' in field["description"], word


def test_every_loss_in_the_grammar_is_one_that_a_job_takes(house: House) -> None:
    """The parts in code that are whole losses, or terms."""
    description = house.app.openapi()["components"]["schemas"]["JobSpec"]["properties"]["loss"]["description"]
    snippets = [part for part in description.split("`")[1::2] if part.startswith(('{"t', '{"loss'))]
    assert len(snippets) == 4
    for snippet in snippets:
        given = json.loads(snippet)
        if given.get("type") == "gradnorm":
            given = {"terms": [{"loss": "focal"}, {"loss": "supcon"}], "combine": given}
        loss = {"terms": [{"loss": "cross_entropy"}, given]} if "loss" in given else given
        reply = house.client.post("/v1/jobs/validate", json={"dataset": house.dataset, "loss": loss})
        assert reply.status_code == 200, f"{snippet}: {reply.text}"
