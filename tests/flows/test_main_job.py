"""The main job from end to end, over HTTP: a file goes in, a classifier comes out, answers, travels and is deleted."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.conftest import wait_until_gone
from tests.service import (
    RunningService,
    all_items,
    error_of,
    events_of,
    reasons_of,
    running,
    submit,
    tickets,
    tiny_spec,
    upload,
)

TEXTS = ["where is my parcel, the courier is late", "i want my money back", "what are your opening hours"]


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[RunningService]:
    """`minimand up`: SQLite, a Valkey of its own, and a spare trainer."""
    with running(tmp_path / "home", spare_trainers=True) as service:
        up = service.start_up()
        yield service
        started = service.processes()
        assert up.stop() == 0
        wait_until_gone(started, timeout_seconds=10)


@pytest.fixture
def distributed(tmp_path: Path, postgres_database_url: str, valkey_url: str) -> Iterator[RunningService]:
    """An API and a worker on a PostgreSQL and a Valkey that are already there."""
    with running(tmp_path / "home", database_url=postgres_database_url, broker_url=valkey_url) as service:
        service.start_api()
        service.start_worker()
        yield service


@pytest.mark.parametrize("installation", ["embedded", "distributed"])
def test_the_main_job(request: pytest.FixtureRequest, installation: str, tmp_path: Path) -> None:
    service: RunningService = request.getfixturevalue(installation)
    with service.client() as client:
        dataset = upload(client, tickets(150), name="tickets", metadata='{"team": "nlp"}')
        spec = {
            **tiny_spec(dataset, epochs=15, checkpoint_every_seconds=0.2),
            "name": "intents",
            "loss": {"type": "focal", "gamma": 1.5},
            "metadata": {"team": "nlp"},
        }
        job_id = submit(client, spec)
        told = _follow_with_a_broken_line(client, job_id)
        job = service.wait_for_job(client, job_id, ["succeeded"])
        _check_job(job, dataset, spec)
        _check_story(client, job, told)
        _check_metrics_and_checkpoints(client, job)
        model = _check_model(client, job)
        answers = _check_predictions(client, model)
        folder = _download(client, model["id"], tmp_path / "download")
        _check_download(folder, model, answers)
        if installation == "embedded":  # the zip is made the same way everywhere
            _check_loading(folder, model, answers)
        _check_deletion(client, service, model["id"])
        if installation == "embedded":
            _check_publishing(client, service, job)
        assert service.run_directories() == []
        assert list((service.home / "cache" / "training").glob("tokens-*"))  # the next job over these rows finds them
        assert service.temporary_files() == []


def _follow_with_a_broken_line(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """The job's events as a browser gets them whose connection breaks once."""
    told: list[dict[str, Any]] = []
    for event in _stream(client, job_id):
        told.append(event)
        if len(told) == 5:
            break
    told += _stream(client, job_id, **{"Last-Event-ID": told[-1]["id"]})
    last = client.get(
        f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": told[-1]["id"]}
    )
    assert (last.status_code, last.content) == (204, b"")
    return told


def _stream(client: httpx.Client, job_id: str, **headers: str) -> Iterator[dict[str, Any]]:
    accept = {"Accept": "text/event-stream", **headers}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=accept) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in reply.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                event = json.loads(fields["data"])
                assert (event["id"], event["type"]) == (fields["id"], fields["event"])
                yield event
                fields = {}


def _check_job(job: dict[str, Any], dataset: str, spec: dict[str, Any]) -> None:
    assert (job["object"], job["kind"], job["name"], job["dataset"]) == ("job", "training", "intents", dataset)
    assert (job["error"], job["attempts"], job["metadata"]) == (None, 0, {"team": "nlp"})
    assert job["spec"]["loss"] == {"type": "focal", "gamma": 1.5, "alpha": None}
    assert job["spec"]["training"]["epochs"] == spec["training"]["epochs"]
    assert job["created_at"] <= job["started_at"] <= job["first_step_at"] <= job["finished_at"]
    assert job["progress"]["step"] == job["progress"]["steps"] == 15 * 15
    assert job["metrics"]["test"]["accuracy"] > 0.8
    assert set(job["metrics"]) == {"validation", "test"}


def _check_story(client: httpx.Client, job: dict[str, Any], told: list[dict[str, Any]]) -> None:
    events = events_of(client, job["id"])
    assert told == events
    assert [event["id"] for event in events] == [f"evt_{n:012d}" for n in range(1, len(events) + 1)]
    assert all_items(client, f"/v1/jobs/{job['id']}/events", limit=7) == events
    assert reasons_of(events) == ["queued", "claimed", "succeeded"]
    assert events[-1]["data"]["model_id"] == job["model_id"]
    steps = [event["data"]["step"] for event in events if event["type"] in ("metrics", "checkpoint")]
    assert steps == sorted(steps)


def _check_metrics_and_checkpoints(client: httpx.Client, job: dict[str, Any]) -> None:
    metrics = all_items(client, f"/v1/jobs/{job['id']}/metrics", limit=100)
    by_name: dict[str, dict[int, float]] = {}
    for one in metrics:
        by_name.setdefault(one["name"], {})[one["step"]] = one["value"]
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "validation/accuracy", "test/accuracy"} <= set(
        by_name
    )
    last = job["progress"]["steps"]
    assert {1, last} <= set(by_name["train/loss"])
    assert by_name["train/loss"][last] < by_name["train/loss"][1]
    assert by_name["test/accuracy"] == {last: job["metrics"]["test"]["accuracy"]}
    checkpoints = all_items(client, f"/v1/jobs/{job['id']}/checkpoints")
    assert 1 <= len(checkpoints) <= 2
    for one in checkpoints:
        assert (one["object"], one["job_id"]) == ("checkpoint", job["id"])
        assert one["bytes"] > 0
        assert len(one["sha256"]) == 64


def _check_model(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = client.get(f"/v1/models/{job['model_id']}").raise_for_status().json()
    assert [one["id"] for one in all_items(client, "/v1/models", **{"metadata[team]": "nlp"})] == [model["id"]]
    assert (model["object"], model["job_id"], model["name"]) == ("model", job["id"], "intents")
    assert (model["base_model"], model["labels"]) == ("tiny", ["delivery", "other", "refund"])
    assert model["loss"] == job["spec"]["loss"]
    assert model["metrics"] == job["metrics"]
    assert model["serving"]["format"] == "onnx-float32"
    report = client.get(f"/v1/models/{model['id']}/report").raise_for_status().json()
    assert set(report["report"]["labels"]) == set(model["labels"])
    return model


def _check_predictions(client: httpx.Client, model: dict[str, Any]) -> list[dict[str, Any]]:
    def ask(given: Any) -> list[dict[str, Any]]:
        body = client.post("/v1/predictions", json={"model": model["id"], "input": given}).raise_for_status().json()
        assert (body["object"], body["model"]) == ("prediction", model["id"])
        assert set(body["timings_ms"]) == {"queue", "tokenize", "inference"}
        for result in body["results"]:
            assert set(result["scores"]) == set(model["labels"])
            assert sum(result["scores"].values()) == pytest.approx(1)
            assert result["score"] == max(result["scores"].values()) == result["scores"][result["label"]]
        results: list[dict[str, Any]] = body["results"]
        return results

    answers = ask(TEXTS)
    assert [answer["label"] for answer in answers] == ["delivery", "refund", "other"]
    for text, answer in zip(TEXTS, answers, strict=True):
        # An answer does not depend on who shares the batch.
        assert ask(text)[0]["scores"] == pytest.approx(answer["scores"], abs=1e-5)
    return answers


def _download(client: httpx.Client, model_id: str, folder: Path) -> Path:
    reply = client.get(f"/v1/models/{model_id}/download").raise_for_status()
    assert reply.headers["content-type"] == "application/zip"
    assert f'filename="{model_id}.zip"' in reply.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


def _answer_by_onnx(folder: Path, texts: list[str]) -> list[list[float]]:
    """Probabilities, from nothing but what the README promises: model.onnx, int64 inputs, tokenizer.json."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {one.type for one in session.get_inputs()} == {"tensor(int64)"}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    temperature = _temperature(folder)
    answers = []
    for text in texts:
        encoding = tokenizer.encode(text)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        feeds = {one.name: np.array([columns[one.name]], np.int64) for one in session.get_inputs()}
        (logits,) = session.run(None, feeds)
        powers = np.exp((logits[0] - logits[0].max()) / temperature)
        answers.append([float(share) for share in powers / powers.sum()])
    return answers


def _temperature(folder: Path) -> float:
    """What calibration on the validation part divides the logits by."""
    return float(json.loads((folder / "minimand.json").read_text())["task"]["temperature"])


_LOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts, temperature = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
model, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
answers = []
for text in texts:
    with torch.no_grad():
        logits = model.eval()(**tokenizer(text, return_tensors="pt")).logits / temperature
        answers.append(logits.softmax(-1)[0].tolist())
lost = [str(key) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in told[name]]
print(json.dumps({"answers": answers, "labels": model.config.id2label, "lost": lost}))
"""


def _check_download(folder: Path, model: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    assert {"README.md", "config.json", "model.onnx", "model.safetensors", "tokenizer.json", "minimand.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert "AutoModelForSequenceClassification.from_pretrained(folder)` loads it" in (folder / "README.md").read_text()
    assert np.array(_answer_by_onnx(folder, TEXTS)) == pytest.approx(_shares(model, answers), abs=1e-4)


def _check_loading(folder: Path, model: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder), json.dumps(TEXTS), str(_temperature(folder))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    told = json.loads(loaded.stdout.splitlines()[-1])
    assert told["lost"] == []
    assert list(told["labels"].values()) == model["labels"]
    assert np.array(told["answers"]) == pytest.approx(_shares(model, answers), abs=1e-4)


def _shares(model: dict[str, Any], answers: list[dict[str, Any]]) -> NDArray[np.float64]:
    return np.array([[answer["scores"][label] for label in model["labels"]] for answer in answers])


def _check_deletion(client: httpx.Client, service: RunningService, model_id: str) -> None:
    assert client.delete(f"/v1/models/{model_id}").status_code == 204
    for reply in (
        client.get(f"/v1/models/{model_id}"),
        client.get(f"/v1/models/{model_id}/download"),
        client.delete(f"/v1/models/{model_id}"),
        client.post("/v1/predictions", json={"model": model_id, "input": TEXTS}),
    ):
        assert (reply.status_code, error_of(reply)["code"]) == (404, "model_not_found")
    assert all_items(client, "/v1/models") == []
    assert list((service.home / "files").rglob("model.onnx")) == []


def _check_publishing(client: httpx.Client, service: RunningService, job: dict[str, Any]) -> None:
    """A checkpoint becomes a model that says where it came from, once, and answers."""
    oldest, *_ = all_items(client, f"/v1/jobs/{job['id']}/checkpoints")
    path = f"/v1/jobs/{job['id']}/checkpoints/{oldest['id']}/publish"
    publication = client.post(path).raise_for_status().json()["id"]
    done = service.wait_for_job(client, publication, ["succeeded"])
    again = client.post(path).json()
    assert (again["id"], again["model_id"]) == (publication, done["model_id"])
    (model,) = all_items(client, "/v1/models", **{"metadata[team]": "nlp"})
    assert (model["id"], model["job_id"], model["name"]) == (done["model_id"], publication, "intents")
    assert model["source"] == {"job_id": job["id"], "checkpoint_id": oldest["id"], "step": oldest["step"]}
    assert model["metrics"] == done["metrics"]
    assert set(model["metrics"]) == {"validation", "test"}
    (result,) = client.post("/v1/predictions", json={"model": model["id"], "input": "refund 1"}).json()["results"]
    assert result["label"] in model["labels"]


def test_a_frozen_encoder_leaves_a_small_model_that_travels_whole(embedded: RunningService, tmp_path: Path) -> None:
    with embedded.client() as client:
        spec = {**tiny_spec(upload(client, tickets(150)), epochs=30), "tuning": {"type": "frozen"}}
        jobs = [submit(client, spec) for _ in range(2)]
        job, again = (embedded.wait_for_job(client, job, ["succeeded"]) for job in jobs)
        model = client.get(f"/v1/models/{job['model_id']}").raise_for_status().json()
        assert model["bytes"] <= 50_000
        # Two heads over one encoder, which is stored once.
        assert len(list((embedded.home / "files").rglob("model.onnx"))) == 1
        assert job["metrics"] == again["metrics"]

        reply = client.post("/v1/predictions", json={"model": model["id"], "input": TEXTS}).raise_for_status()
        served = _shares(model, reply.json()["results"])
        folder = _download(client, model["id"], tmp_path / "download")
        assert np.array(_answer_by_onnx(folder, TEXTS)) == pytest.approx(served, abs=1e-4)
        assert "`AutoModelForSequenceClassification` cannot express it" in (folder / "README.md").read_text()

        assert client.delete(f"/v1/models/{model['id']}").status_code == 204
        other = {"model": again["model_id"], "input": TEXTS}
        answer = client.post("/v1/predictions", json=other).raise_for_status().json()["results"]
        assert _shares(model, answer) == pytest.approx(served, abs=1e-6)
