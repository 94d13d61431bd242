"""Every tuning trains MiniLM on real questions at its default rate, and another process serves it, head and all."""

import csv
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest

from ml.specs.tuning import TuningSpec
from tests.service import RunningService, running, submit, upload
from tests.shared_data import SHARED_DATA

TREC = SHARED_DATA / "trec"
TYPES = sorted(spec.model_fields["type"].annotation.__args__[0] for spec in TuningSpec.__subclasses__())  # type: ignore[union-attr]

pytestmark = [
    pytest.mark.data,
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not TREC.is_dir(), reason=f"{TREC} is not there"),
]

TRAIN_ROWS, TEST_ROWS = 640, 200


def rows(part: str, most: int) -> list[dict[str, str]]:
    with (TREC / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        return [
            {"text": row["text"], "label": row["label"], "split": part} for row in islice(csv.DictReader(file), most)
        ]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, valkey_server: str) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("tunings") / "home"
    settings = {"broker_url": valkey_server, "trainer_threads": 0, "inference_threads": 0, "lease_seconds": 60}
    with running(home, has_tiny_base=False, **settings) as service:
        service.start_api()
        service.start_worker(spare_trainers=True)
        yield service


@pytest.fixture(scope="module")
def dataset(service: RunningService) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, ["text", "label", "split"])
    writer.writeheader()
    writer.writerows([*rows("train", TRAIN_ROWS), *rows("test", TEST_ROWS)])
    with service.client() as client:
        return upload(client, table.getvalue().encode())


def answers(client: httpx.Client, model: str) -> list[str]:
    """The labels a model gives to the test part."""
    texts = [row["text"] for row in rows("test", TEST_ROWS)]
    found: list[str] = []
    for start in range(0, len(texts), 50):
        reply = client.post("/v1/predictions", json={"model": model, "input": texts[start : start + 50]})
        found += [result["label"] for result in reply.raise_for_status().json()["results"]]
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_what_was_measured_in_training_is_what_is_served(service: RunningService, dataset: str, kind: str) -> None:
    # A few vectors before the text take longer to say anything than weights of the encoder do.
    epochs = 10 if kind in ("prompt", "prefix", "ia3") else 3
    tuning: dict[str, Any] = {"type": kind, **({"layers": 2} if kind == "top_layers" else {})}
    spec = {
        "dataset": dataset,
        "model": "minilm",
        "split": {"validation": 0, "test": 0},
        "tuning": tuning,
        "training": {"epochs": epochs, "batch_size": 16},
    }
    with service.client() as client:
        job = service.wait_for_job(client, submit(client, spec), ["succeeded"], timeout_seconds=800)
        measured = job["metrics"]["test"]["accuracy"]
        served = answers(client, job["model_id"])
    right = [answer == row["label"] for answer, row in zip(served, rows("test", TEST_ROWS), strict=True)]
    # bfloat16 in training may tip a row that stands between two labels.
    assert sum(right) / TEST_ROWS == pytest.approx(measured, abs=0.015)
    assert measured > 0.6  # the most frequent label has under 0.3
