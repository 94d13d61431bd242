"""schemathesis over the whole document with a key, by the configuration that is for anybody's server: no reply of 5xx,
no status and no shape that the document does not have. Bounded here; `make fuzz` takes its time.

The server has a model and jobs that have ended, and its document's examples name them: else all that is drawn would be
refused, and no reply of a served model be seen.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from app.db.tables import CheckpointRow
from app.http.examples import DATASET_ID, MODEL_ID
from app.http.openapi import operations
from app.ids import new_id
from app.limits.schemas import Limits
from tests.app.http.house import ExampleHouse
from tests.service import copy_model, tickets, upload

ROOT = Path(__file__).parents[3]
PROGRAM = Path(sys.executable).parent / "schemathesis"
# The coverage of a job's spec takes a minute and a half by itself.
BOUNDED = (("--phases", "examples,fuzzing"), ("--phases", "coverage", "--include-path", "/v1/predictions"))


class ServedHouse(ExampleHouse):
    """The application at an address of its own, with a document whose examples name its things."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, default_limits=Limits())
        (training,) = self.client.get("/v1/jobs").json()["data"]
        self.batch = self._bulk("prediction_batch", "prediction_batches")
        self.evaluation = self._bulk("evaluation", "evaluations")
        self.things = {
            "dataset_id": self.described,
            "job_id": training["id"],
            "checkpoint_id": self._add_checkpoint(training["id"]),
            "model_id": self.model,
            "name": "production",
            "loss_type": "focal",
            "key_id": self._made("/v1/keys", name="k", scopes=["predict"])["id"],
            "project_id": self._made("/v1/projects", name="other")["id"],
        }
        self.app.openapi_schema = self._document()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def _made(self, path: str, **body: Any) -> dict[str, Any]:
        reply = self.client.post(path, json=body)
        assert reply.status_code == 201, reply.text
        made: dict[str, Any] = reply.json()
        return made

    def _bulk(self, kind: str, path: str) -> str:
        """A job over the whole dataset that has ended."""
        self._made(f"/v1/{path}", model=self.model, dataset=self.described)
        return str(self.carry_out(kind)["id"])

    def _add_checkpoint(self, job_id: str) -> str:
        """Its row, which is all that is asked for."""
        values: dict[str, Any] = {"step": 1, "epoch": 1.0, "folder": "f", "bytes": 1, "sha256": "s", "metrics": {}}
        row = CheckpointRow(id=new_id("ckpt"), job_id=job_id, fence=1, created_at=time.time(), **values)
        with self.database.write() as session:
            session.add(row)
        return row.id

    def _document(self) -> dict[str, Any]:
        """The document, with ids of things that are there in the places of its own; what a call ends or changes is
        there for that call alone.
        """
        text = json.dumps(self.app.openapi()).replace(DATASET_ID, self.described).replace(MODEL_ID, self.model)
        text = text.replace("wait=30", "wait=0")  # nobody is there to work
        document: dict[str, Any] = json.loads(text)
        for schema in document["components"]["schemas"].values():
            for name, thing in (("model", self.model), ("dataset", self.described)):
                if name in schema.get("properties", {}):
                    schema["properties"][name]["examples"] = [thing]
        for one in operations(document):
            things = self.things | self._own(one.method, one.path)
            for parameter in one.body.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"]["examples"] = [things[parameter["name"]]]
        return document

    def _own(self, method: str, path: str) -> dict[str, str]:
        job = {"dataset": self.described}
        match method, path:
            case "delete", "/v1/datasets/{dataset_id}":
                return {"dataset_id": upload(self.client, tickets(30))}
            case "delete", "/v1/models/{model_id}":
                return {"model_id": copy_model(self.database, self.services.store, self.model)}
            case "delete", "/v1/aliases/{name}":
                self.client.put("/v1/aliases/old", json={"model": self.model}).raise_for_status()
                return {"name": "old"}
            case ("delete", "/v1/keys/{key_id}") | ("post", "/v1/keys/{key_id}/rotate"):
                return {"key_id": self._made("/v1/keys", name="k", scopes=["predict"])["id"]}
            case "post", "/v1/jobs/{job_id}/cancel" | "/v1/jobs/{job_id}/pause":
                return {"job_id": self._made("/v1/jobs", **job)["id"]}
            case "post", "/v1/jobs/{job_id}/resume":
                paused = self._made("/v1/jobs", **job)["id"]
                self.client.post(f"/v1/jobs/{paused}/pause").raise_for_status()
                return {"job_id": paused}
            case "get", "/v1/comparisons/{job_id}":
                compared: dict[str, Any] = {**job, "losses": [{"type": "focal"}, {"type": "cross_entropy"}]}
                return {"job_id": self._made("/v1/comparisons", **compared)["id"]}
            case "get", path if path.startswith("/v1/prediction_batches/"):
                return {"job_id": self.batch}
            case "get", path if path.startswith("/v1/evaluations/"):
                return {"job_id": self.evaluation}
        return {}

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        super().close()

    def fuzz(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """As anybody would, from whatever folder."""
        command = [str(PROGRAM), "--config-file", str(ROOT / "schemathesis.toml"), "run", f"{self.url}/openapi.json"]
        key = ("-H", f"Authorization: Bearer {self.secret}", "--no-color")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS")}
        return subprocess.run(
            [*command, *key, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    def successes(self) -> Counter[tuple[str, str]]:
        """How many requests of each method and path were answered with what was asked for."""
        counted: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for one in family.samples:
                if one.name == "minimand_http_requests_total" and one.labels["status"].startswith("2"):
                    counted[one.labels["method"].lower(), one.labels["route"]] += int(one.value)
        return counted


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ServedHouse]:
    house = ServedHouse(tmp_path / "home")
    yield house
    house.close()


def test_every_reply_is_one_that_the_document_has(house: ServedHouse, tmp_path: Path) -> None:
    before = house.successes()
    for options in BOUNDED:
        run = house.fuzz(tmp_path, "--max-examples", "1", "--seed", "17", *options)
        assert run.returncode == 0, run.stdout + run.stderr
    every = {(one.method, one.path) for one in operations(house.app.openapi())}
    assert every - set(house.successes() - before) == set(), "what is only refused shows no shape of its replies"


@pytest.mark.proof
def test_every_reply_is_one_that_the_document_has_at_length(house: ServedHouse, tmp_path: Path) -> None:
    run = house.fuzz(tmp_path, "--max-examples", "100")
    assert run.returncode == 0, run.stdout + run.stderr
