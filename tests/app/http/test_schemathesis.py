"""schemathesis over the whole document with a key, by the configuration that is for anybody's server: no reply of 5xx,
no status and no shape that the document does not have. Bounded here; `make fuzz` takes its time.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from tests.service import AppHouse, tickets, upload

ROOT = Path(__file__).parents[3]
PROGRAM = Path(sys.executable).parent / "schemathesis"
BOUNDED = ("--max-examples", "1", "--phases", "examples,fuzzing", "--seed", "17")


class ServedHouse(AppHouse):
    """The application at an address of its own, with a dataset."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        upload(self.client, tickets(30))
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

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


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ServedHouse]:
    house = ServedHouse(tmp_path / "home")
    yield house
    house.close()


def test_every_reply_is_one_that_the_document_has(house: ServedHouse, tmp_path: Path) -> None:
    run = house.fuzz(tmp_path, *BOUNDED)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.proof
def test_every_reply_is_one_that_the_document_has_at_length(house: ServedHouse, tmp_path: Path) -> None:
    run = house.fuzz(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
