"""Requests that mean harm cost little and are refused: forms of many parts, ranges, JSON that nests or repeats."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service import AppHouse, error_of

PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\na\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n%s\r\n\r\ntext\na\n\r\n'
SOON_SECONDS = 10  # each takes some milliseconds; what is quadratic takes minutes


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppHouse]:
    house = AppHouse(tmp_path_factory.mktemp("abuse"))
    yield house
    house.close()


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON_SECONDS


def upload(house: AppHouse, body: bytes) -> Any:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return house.client.post("/v1/datasets", content=body + b"--b--\r\n", headers=headers)


FORMS = {
    "many fields": b"".join(PART % b"name" for _ in range(10_000)),
    "many files": (FILE % b"") * 1_000,
    "a field without end": b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"a" * 5_000_000 + b"\r\n",
    "a part with a header without end": FILE % (b"x: " + b"a" * 5_000_000),
    "a part with many headers": FILE % b"\r\n".join(b"x%d: a" % number for number in range(100_000)),
    "a name without end": PART % (b"n" * 1_000_000),
    "a boundary that almost comes": FILE % b"" + b"\r\n--" * 100_000,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_means_harm_is_refused(house: AppHouse, name: str) -> None:
    """CVE-2023-30798 and its like."""
    assert 400 <= upload(house, FORMS[name]).status_code < 500
    scratch = house.settings.scratch
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "filename", ["../../evil.csv", "/etc/evil.csv", "..\\evil.csv", "a\x01\x7f/evil.csv", "%2e%2e%2fevil.csv"]
)
def test_a_file_name_is_never_a_path(house: AppHouse, filename: str) -> None:
    """CVE-2026-2614, CVE-2024-1560: every name on disk is of our own making."""
    home = house.settings.home
    before = set(home.parent.rglob("*evil*"))
    reply = house.client.post("/v1/datasets", files={"file": (filename, b"text\na\n")})
    assert reply.status_code == 201
    assert "/" not in reply.json()["name"]
    assert set(home.parent.rglob("*evil*")) == before
    assert {path.name for path in (home / "files" / "datasets").rglob("*") if path.is_file()} == {"data.parquet"}


RANGES = [
    "bytes=" + ",".join(f"{number}-" for number in range(10_000)),
    "bytes=" + ",".join("0-" for _ in range(10_000)),
    "bytes=-" + "9" * 5_000,
    "bytes=5-1",
    "bytes=" + "-" * 100_000,
]


@pytest.mark.parametrize("given", RANGES)
@pytest.mark.parametrize("path", ["/static-docs/swagger-ui.css", "content"])
def test_ranges_without_end_are_no_work(house: AppHouse, path: str, given: str) -> None:
    """CVE-2025-62727: the time to read a header of ranges must not grow with its square."""
    if path == "content":
        dataset = house.client.post("/v1/datasets", files={"file": ("a.csv", b"text\na\n")}).json()["id"]
        path = f"/v1/datasets/{dataset}/content"
    reply = house.client.get(path, headers={"Range": given})
    assert reply.status_code in (200, 206, 400, 416)
    assert len(reply.content) < 1_000_000


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


RATE = '{"dataset": "ds_x", "training": {"optimizer": {"type": "adamw", "learning_rate": %s}}}'

BODIES = {
    "nested JSON": (f'{{"dataset": "ds_x", "loss": {nested(100_000)}}}', (400, 422)),
    "a nested object": ('{"dataset":' * 50_000 + "1" + "}" * 50_000, (400, 422)),
    "a number of many digits": ('{"dataset": "ds_x", "training": {"epochs": ' + "9" * 500_000 + "}}", (400, 422)),
    "NaN": (RATE % "NaN", (400, 422)),
    "infinity": (RATE % "1e999", (400, 422)),
    "many keys": (json.dumps({"dataset": "ds_x", **{f"k{number}": 1 for number in range(60_000)}}), (422,)),
    # As integers they would: Python hashes those by this prime. Keys are text, which is hashed with a secret.
    "keys that collide": (json.dumps({str(number * ((1 << 61) - 1)): 1 for number in range(20_000)}), (422,)),
    "one key again and again": ("{" + ",".join(['"dataset": "ds_x"'] * 50_000) + "}", (404, 422)),
    "many terms": (json.dumps({"dataset": "ds_x", "loss": {"terms": [{"loss": "mse"}] * 40_000}}), (422,)),
    "a megabyte and more": (json.dumps({"dataset": "d" * 1_000_001}), (413,)),
    "silly sizes": (json.dumps({"dataset": "ds_x", "training": {"batch_size": 10**9, "max_length": 10**9}}), (422,)),
    "half of a surrogate pair": ('{"dataset": "\\ud800"}', (400, 404, 422)),
    "broken UTF-8": (b'{"dataset": "\xff"}', (400, 422)),
}


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/jobs/validate", "/v1/predictions", "/v1/comparisons"])
@pytest.mark.parametrize("name", BODIES)
def test_json_that_means_harm_is_refused(house: AppHouse, name: str, route: str) -> None:
    body, expected = BODIES[name]
    reply = house.client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in expected, reply.text[:500]
    assert len(error_of(reply)["message"]) < 10_000


@pytest.mark.parametrize("model", ["http://169.254.169.254/model", "file:///etc/passwd", "hf://someone/x", "../../etc"])
def test_no_request_names_a_url_or_a_path(house: AppHouse, model: str) -> None:
    """CVE-2023-43654, CVE-2025-54381, CVE-2025-6242: nothing that a request names is fetched."""
    dataset = house.client.post("/v1/datasets", files={"file": ("a.csv", b"text,label\na,b\nc,d\n")}).json()["id"]
    reply = house.client.post("/v1/jobs", json={"dataset": dataset, "model": model})
    assert reply.status_code == 422
    assert error_of(reply)["param"] == "/model"
    assert "never taken from a request" in error_of(reply)["message"]
