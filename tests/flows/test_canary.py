"""What a user sends and what opens doors stands in no log, however much is logged: words that are nowhere else are put
into texts, keys and passwords, and looked for afterwards.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.keys.service import new_secret
from tests.service import RunningService, events_of, running, submit, tickets, tiny_spec, upload

CANARY = "kanarienvogel"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with running(tmp_path / "home", log_level="DEBUG", max_attempts=1) as service:
        service.start_up()
        yield service


def test_no_log_holds_a_text_a_key_or_a_password(service: RunningService) -> None:
    rows = tickets(60).replace(b"parcel", CANARY.encode())
    assert CANARY.encode() in rows
    unknown = new_secret()
    with service.client() as client:
        secret = client.headers["authorization"].split()[1]
        made = client.post("/v1/keys", json={"name": "k", "scopes": ["predict"]}).json()["secret"]
        told = _drive(client, rows)
        for word in (unknown, f"mk_{CANARY}", f"{CANARY} {CANARY}"):
            assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {word}"}).status_code == 401
        _spoil(service, client, told["other"])
        assert CANARY not in json.dumps(told["events"])
    password = urlsplit((service.home / "broker" / "url").read_text().strip()).password
    assert password
    # The first start prints the admin key, to whoever typed the command; it is no line of the log.
    logs = {program.log.name: re.sub(r"Admin key: \S+", "", program.said(), count=1) for program in service.programs}
    logs |= {str(file): file.read_text(errors="replace") for file in service.home.rglob("*log*") if file.is_file()}
    everything = "\n".join(logs.values())
    assert told["other"] in everything, "what goes wrong is logged"
    assert len(everything) > 2_000
    for word in (CANARY, secret[3:43], made[3:43], unknown[3:43], password):
        assert [name for name, text in logs.items() if word in text] == [], word


def _drive(client: httpx.Client, rows: bytes) -> dict[str, Any]:
    """Have everything that reads texts read some, well and badly."""
    dataset = upload(client, rows, name=CANARY)
    for name, content in [
        ("cut.csv", rows[:-40] + b'"' + CANARY.encode()),
        (f"{CANARY}.csv", b"text,label\n" + CANARY.encode() + b"\xff,b\n"),
        ("long.jsonl", json.dumps({"text": CANARY * 200_000, "label": "a"}).encode()),
        ("bad.jsonl", b'{"text": "' + CANARY.encode()),
    ]:
        client.post("/v1/datasets", files={"file": (name, content)})
    ids = [
        submit(client, tiny_spec(dataset, epochs=2)),
        submit(client, tiny_spec(dataset, epochs=1)),
        submit(client, tiny_spec(dataset, epochs=2, optimizer={"type": "adamw", "learning_rate": 1e9})),
    ]
    assert client.post("/v1/jobs", json={"dataset": dataset, "name": CANARY, "loss": CANARY}).status_code == 422
    jobs = [_ended(client, job) for job in ids]
    model = jobs[0]["model_id"]
    for given in (f"a {CANARY}", [CANARY, ""], f"{CANARY} \ud800", CANARY * 20_000, {"text": CANARY}):
        content = json.dumps({"model": model, "input": given})
        client.post("/v1/predictions", content=content, headers={"Content-Type": "application/json"})
    client.post("/v1/predictions", json={"model": CANARY, "input": CANARY})
    batch = client.post("/v1/prediction_batches", json={"model": model, "dataset": dataset}).json()["id"]
    evaluation = client.post("/v1/evaluations", json={"model": model, "dataset": dataset}).json()["id"]
    jobs += [_ended(client, batch), _ended(client, evaluation)]
    return {"other": jobs[1]["model_id"], "events": [events_of(client, job["id"]) for job in jobs]}


def _ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """A job once its stream has come to its end."""
    with client.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as stream:
        for _ in stream.iter_bytes():
            pass
    found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
    assert found["status"] in ("succeeded", "failed"), found
    return found


def _spoil(service: RunningService, client: httpx.Client, model: str) -> None:
    """Ask for a model whose files were spoilt, so that something goes wrong with a text in hand."""
    for file in (service.home / "files").rglob("minimand.json"):
        file.write_text("{")
    reply = client.post("/v1/predictions", json={"model": model, "input": CANARY})
    assert reply.status_code == 503, reply.text
