"""Base models come from a hub as an operator pinned them, and are looked at before they are kept. The hub is a server
of the hub's shape here: real requests, by the real client.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from pydantic import ValidationError

from app.base_models.check import check_registered
from app.base_models.hub import HubModel
from app.errors import UnfitBaseError
from app.settings import Settings
from tests.service import AppHouse, error_of, tickets, tiny_base, tiny_spec, upload

REPOSITORY, REVISION = "example/tiny", "0123456789abcdef0123456789abcdef01234567"
REFERENCE = f"hf:{REPOSITORY}@{REVISION}"


class Hub(ThreadingHTTPServer):
    """Serves one repository at one commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.has_repository = True
        super().__init__(("127.0.0.1", 0), _Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(path)
        names = sorted(str(file.relative_to(self.server.folder)) for file in self.server.folder.rglob("*"))
        if not self.server.has_repository:
            self.send_error(404)
            return
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            body = json.dumps(
                {"id": REPOSITORY, "sha": REVISION, "siblings": [{"rfilename": name} for name in names]}
            ).encode()
        elif path.startswith(prefix := f"/{REPOSITORY}/resolve/{REVISION}/"):
            body = (self.server.folder / path.removeprefix(prefix)).read_bytes()
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/{REVISION}"):
            body = json.dumps(
                [
                    {"type": "file", "path": name, "size": (self.server.folder / name).stat().st_size, "oid": "0" * 40}
                    for name in names
                    if (self.server.folder / name).is_file()
                ]
            ).encode()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Be quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for file in tiny_base().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    hub = Hub(folder)
    yield hub
    hub.shutdown()
    hub.server_close()


def fetch(home: Path, hub: Hub) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINIMAND_")} | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home / "hf"),
        "MINIMAND_HOME": str(home),
        "MINIMAND_BASE_MODELS": json.dumps({"pinned": REFERENCE}),
    }
    command = [sys.executable, "-m", "app.cli", "fetch"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_pinned_model_is_fetched_once_without_what_could_run_code_and_serves_jobs(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    ran = fetch(home, hub)
    assert ran.returncode == 0, ran.stderr
    folder = home / "bases" / f"example--tiny@{REVISION}"
    assert f"pinned: {folder}" in ran.stdout
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert not any(path.endswith((".bin", ".py")) for path in hub.asked if "resolve" in path)
    hub.asked.clear()
    assert fetch(home, hub).returncode == 0
    assert hub.asked == []
    house = AppHouse(home, base_models={"pinned": REFERENCE})
    try:
        assert "pinned" in [one["id"] for one in house.client.get("/v1/base_models").json()["data"]]
        spec = {**tiny_spec(upload(house.client, tickets(30))), "model": "pinned"}
        assert house.client.post("/v1/jobs/validate", json=spec).status_code == 200
        # A request names a model that the operator pinned, and never a hub's own name.
        for name in (REPOSITORY, REFERENCE):
            reply = house.client.post("/v1/jobs/validate", json={**spec, "model": name})
            assert (reply.status_code, error_of(reply)["code"]) == (422, "model_not_found")
    finally:
        house.close()


def test_what_is_no_base_model_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "modeling_tiny.Tiny"}}')
    ran = fetch(tmp_path / "home", hub)
    assert ran.returncode == 1
    assert "config.json has the key 'auto_map'" in ran.stderr
    assert list((tmp_path / "home" / "bases").iterdir()) == []


def test_a_hub_that_gives_nothing_is_told_of_in_a_line(hub: Hub, tmp_path: Path) -> None:
    shutil.rmtree(hub.folder)
    hub.has_repository = False
    ran = fetch(tmp_path / "home", hub)
    assert ran.returncode == 1
    assert "'pinned' was not fetched." in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "given", ["hf:example/tiny@main", "hf:example/tiny", f"hf:a/b/c@{REVISION}", "hf:../x@" + "0" * 40]
)
def test_a_model_that_is_not_pinned_is_refused(given: str) -> None:
    with pytest.raises((ValidationError, ValueError), match="40 hexadecimal digits"):
        Settings(base_models={"pinned": given})


def test_a_model_that_was_not_fetched_says_how(tmp_path: Path) -> None:
    folder = HubModel(REPOSITORY, REVISION).folder_in(tmp_path)
    with pytest.raises(UnfitBaseError, match="minimand fetch"):
        check_registered("pinned", folder)
