"""Uploads made to do harm, and clients that hold on: each is told no, within bounds, and nobody else notices."""

import gzip
import io
import os
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.faults.site import Site
from tests.service import error_of, wait_until

BOUNDARY = "a-boundary"
TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()
MB = 1_000_000


def lying_parquet(*, footer: int) -> bytes:
    """A real file whose footer is said to be of another length."""
    file = io.BytesIO()
    parquet.write_table(pa.table({"text": ["a"] * 100, "label": ["b"] * 100}), file)
    return file.getvalue()[:-8] + footer.to_bytes(4, "little") + b"PAR1"


def dictionary_bomb() -> bytes:
    """Few bytes that decode to many gigabytes: one long cell, again and again."""
    file = io.BytesIO()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 900_000]))
    parquet.write_table(pa.table({"text": column, "label": column}), file, compression="zstd")
    return file.getvalue()


def huge_cell() -> Iterator[bytes]:
    """A CSV of one cell of a gigabyte."""
    yield (HEAD % "cell.csv").encode() + b"text,label\n"
    for _ in range(1_000):
        yield b"x" * MB
    yield TAIL


def files() -> dict[str, bytes]:
    rows = b"text,label\n" + b"where is my parcel,delivery\n" * 20_000_000
    return {
        "bomb.csv.gz": gzip.compress(rows, 9),
        "zeros.csv.gz": gzip.compress(bytes(500 * MB), 9),
        "bomb-in-a-bomb.csv.gz": gzip.compress(gzip.compress(bytes(500 * MB), 9), 9),
        "lying.parquet": lying_parquet(footer=2**31 - 1),
        "negative.parquet": lying_parquet(footer=2**32 - 1),
        "empty-footer.parquet": lying_parquet(footer=0),
        "dictionary.parquet": dictionary_bomb(),
        "columns.csv": b",".join(b"c%d" % i for i in range(100_000)) + b"\n",
        "zip.csv": b"PK\x03\x04" + bytes(1000),
        "cut.csv.gz": gzip.compress(rows[:MB])[:-100],
    }


@pytest.mark.row("hostile uploads: bombs, lies, a cell of 1 GB", runs=2)
@pytest.mark.proof
def test_what_is_made_to_do_harm_is_refused_in_bounded_memory_and_disk(site: Site) -> None:
    before, home = tree(site), site.service.home
    api = psutil.Process(next(one.pid for one in site.service.programs if "api" in one.log.name and one.is_running))
    held = api.memory_info().rss
    for name, content in files().items():
        reply = site.client.post("/v1/datasets", files={"file": (name, content)})
        assert 400 <= reply.status_code < 500, f"{name}: {reply.text}"
        assert error_of(reply)["message"], name
    reply = site.client.post("/v1/datasets", content=huge_cell(), headers=TYPE, timeout=300)
    assert reply.status_code == 422, reply.text
    assert error_of(reply)["code"] == "row_too_large"
    assert api.memory_info().rss < held + 200 * MB
    wait_until(lambda: tree(site) == before, 10, lambda: f"left: {tree(site) ^ before}")
    assert sum(file.stat().st_size for file in (home / "scratch").rglob("*") if file.is_file()) < MB


@pytest.mark.row("file names that lead elsewhere", runs=2)
@pytest.mark.proof
def test_no_name_leads_out_of_the_home(site: Site) -> None:
    outside = site.service.home.parent
    around = set(outside.iterdir())
    for name in (
        "../../evil.csv",
        "/tmp/minimand-evil.csv",
        "..\\evil.csv",
        "a\x00b.csv",
        "%2e%2e%2fevil.csv",
        "." * 300,
    ):
        reply = site.client.post("/v1/datasets", files={"file": (name, b"text,label\na,b\n")})
        assert reply.status_code in (201, 400, 422), reply.text
        if reply.status_code == 201:
            assert "/" not in reply.json()["name"]
            assert "\\" not in reply.json()["name"]
            site.client.delete(reply.headers["Location"])
    assert set(outside.iterdir()) == around
    assert not os.path.exists("/tmp/minimand-evil.csv")  # noqa: PTH110


@pytest.mark.row("truncated uploads, and clients that hold on", runs=2)
@pytest.mark.proof
def test_slow_and_cut_requests_end_and_leave_nothing(site: Site) -> None:
    """With the default of 30 s; what is slow in which way is in tests/app/http/test_slow_clients.py."""
    address = urlsplit(str(site.client.base_url))
    key = site.client.headers["authorization"]
    before = tree(site)
    head = (
        f"POST /v1/datasets HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\n"
        f"content-type: {TYPE['Content-Type']}\r\ncontent-length: 100000000\r\n\r\n{HEAD % 'slow.csv'}text,label\n"
    ).encode()
    held = []
    for place in range(200):
        connection = socket.create_connection((address.hostname, address.port), timeout=60)
        connection.sendall(head if place % 2 else head[:30])
        held.append(connection)
    for connection in held[::4]:
        connection.close()  # cut in the middle
    begun = time.monotonic()
    for place, connection in enumerate(held):
        if place % 4:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 408 "), place
            connection.close()
    assert time.monotonic() - begun < 60
    wait_until(lambda: tree(site) == before, 20, lambda: f"left: {tree(site) ^ before}")


def tree(site: Site) -> set[Any]:
    """The files that the service has, but for what its database and broker write."""
    return {file for part in ("files", "scratch") for file in (site.service.home / part).rglob("*") if file.is_file()}
