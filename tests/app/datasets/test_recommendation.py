"""`GET /v1/datasets/{id}/recommendation`: the body, its refusals, and that what it says can be submitted."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service import AppHouse, error_of, upload
from tests.shared_data import SHARED_DATA


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("recommendation"))
    yield house
    house.close()


def csv_of(**counts: int) -> bytes:
    rows = [f"text {label} {i},{label}" for label, count in counts.items() for i in range(count)]
    return "\n".join(["text,label", *rows]).encode()


def ask(house: AppHouse, dataset: str, **query: str) -> Any:
    return house.client.get(f"/v1/datasets/{dataset}/recommendation", params=query)


def test_the_body(house: AppHouse) -> None:
    dataset = upload(house.client, csv_of(ham=300, spam=25))
    reply = ask(house, dataset)
    assert reply.status_code == 200
    body = reply.json()
    assert (body["object"], body["dataset"]) == ("dataset.recommendation", dataset)
    assert (body["task"], body["metric"]) == ("text_classification", "macro_f1")
    assert body["loss"] == {"type": "logit_adjusted", "tau": 1.0}
    assert body["alternative"]["loss"]["type"] == "ldam"
    assert body["alternative"]["reason"]
    assert body["evidence"]["imbalance_ratio"] == 12
    assert body["evidence"]["rarest"] == {"label": "spam", "rows": 25}
    assert any("12.0" in reason for reason in body["reasons"])
    assert any("Menon" in paper for paper in body["source"])


@pytest.mark.parametrize(
    ("counts", "query"),
    [
        ({"a": 60, "b": 60}, {}),
        ({"a": 200, "b": 40}, {}),
        ({"a": 200, "b": 5}, {}),
        ({"1": 40, "2": 40, "3": 40}, {"metric": "qwk"}),
        ({"1": 40, "2": 40, "3": 40}, {"metric": "r2"}),
        ({"1.5": 40, "2.5": 40, "3.5": 40}, {}),
    ],
)
def test_both_losses_can_be_submitted(house: AppHouse, counts: dict[str, int], query: dict[str, str]) -> None:
    dataset = upload(house.client, csv_of(**counts))
    body = ask(house, dataset, **query).json()
    for loss in (body["loss"], body["alternative"]["loss"]):
        spec = {"dataset": dataset, "task": {"type": body["task"]}, "loss": loss}
        assert house.client.post("/v1/jobs", json=spec).status_code == 201


def test_an_unknown_metric(house: AppHouse) -> None:
    reply = ask(house, upload(house.client, csv_of(a=30, b=30)), metric="acuracy")
    assert reply.status_code == 422
    error = error_of(reply)
    assert (error["param"], error["code"]) == ("metric", "unknown_metric")
    assert "Did you mean 'accuracy'?" in error["message"]


def test_a_dataset_without_labels(house: AppHouse) -> None:
    reply = ask(house, upload(house.client, b"text\nhello\nthere\n"))
    assert (reply.status_code, error_of(reply)["code"]) == (422, "missing_label_column")


def test_no_such_dataset(house: AppHouse) -> None:
    assert ask(house, "ds_0").status_code == 404
    dataset = upload(house.client, csv_of(a=30, b=30))
    other = house.client_of_another_project()
    assert other.get(f"/v1/datasets/{dataset}/recommendation").status_code == 404
    assert house.client_with(None).get(f"/v1/datasets/{dataset}/recommendation").status_code == 401


def test_shared_data(house: AppHouse) -> None:
    file = SHARED_DATA / "sms_spam" / "train.csv"
    if not file.exists():
        pytest.skip("the shared datasets are not here")
    body = ask(house, upload(house.client, file.read_bytes())).json()
    assert body["loss"]["class_weights"]["scheme"] == "effective_number"
