"""The learning is real: MiniLM, fine-tuned on 2,000 movie reviews with a focal loss, tells good ones from bad ones."""

import csv
import io
import random
from pathlib import Path

import pytest

from tests.service import running, submit, upload
from tests.shared_data import SHARED_DATA

_DATA = SHARED_DATA / "sst2"

pytestmark = [
    pytest.mark.proof,
    pytest.mark.data,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (_DATA / "train.csv").is_file(), reason=f"{_DATA} is not there"),
]


def _read(name: str) -> list[dict[str, str]]:
    with (_DATA / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _as_csv(rows: list[dict[str, str]]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def test_a_focal_loss_learns_sentiment_from_two_thousand_sentences(tmp_path: Path, valkey_url: str) -> None:
    sample = random.Random(17).sample(_read("train.csv"), 2_000)
    test = _read("test.csv")
    with running(tmp_path / "home", broker_url=valkey_url, has_tiny_base=False) as service:
        service.start_api()
        service.start_worker()
        with service.client() as client:
            spec = {
                "model": "minilm",
                "dataset": upload(client, _as_csv(sample)),
                "split": {"validation": 0.1, "test": 0.0},
                "loss": {"type": "focal", "gamma": 2.0},
                "training": {"epochs": 2, "batch_size": 32, "optimizer": {"type": "adamw", "learning_rate": 1e-4}},
            }
            job = service.wait_for_job(client, submit(client, spec), ["succeeded"], timeout_seconds=500)
            answers: list[str] = []
            for start in range(0, len(test), 64):
                body = {"model": job["model_id"], "input": [row["text"] for row in test[start : start + 64]]}
                reply = client.post("/v1/predictions", json=body).raise_for_status()
                answers += [result["label"] for result in reply.json()["results"]]
    right = sum(answer == row["label"] for answer, row in zip(answers, test, strict=True))
    accuracy = right / len(test)
    assert accuracy >= 0.84, f"{accuracy:.4f} of {len(test)} test sentences"
    # On 200 rows the validation part only says roughly the same.
    assert job["metrics"]["validation"]["accuracy"] == pytest.approx(accuracy, abs=0.1)
