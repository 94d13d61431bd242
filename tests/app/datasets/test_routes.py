"""Datasets over HTTP: what goes in comes out, and what cannot is refused with its place and its code."""

import asyncio
import csv
import gzip
import hashlib
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pyarrow as pa
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pyarrow import parquet

from app.datasets import parser
from app.datasets.routes import router
from app.datasets.service import DatasetService, clean_filename
from app.db.session import Database
from app.db.tables import Base, DatasetRow, JobRow, ProjectRow
from app.errors import NotFoundError
from app.http.errors import install_error_handlers
from app.http.idempotency import KEPT_SECONDS
from app.http.pagination import PageRequest
from app.ids import new_id
from app.keys.caller import FIRST_PROJECT
from app.keys.service import KeyService, new_key
from app.limits.rates import RateBuckets
from app.limits.schemas import Limits
from app.limits.service import LimitService
from app.settings import Settings
from app.storage import FileStore

ROWS = [
    {"text": "where is my parcel?", "label": "delivery", "split": "train"},
    {"text": '退款少了20块, "请"\n核实', "label": "refund", "split": "dev"},
    {"text": "", "label": "", "split": "test"},
]
STORED = [{**row, "split": split} for row, split in zip(ROWS, ["train", "validation", "test"], strict=True)]
MAX_UPLOAD = 200_000


class House:
    """An app of one router over a real database and a real folder."""

    def __init__(self, home: Path, database: Database, **settings: Any) -> None:
        self.settings = Settings(home=home, **{"max_upload_bytes": MAX_UPLOAD, **settings})
        self.database = database
        self.files = home / "files"
        keys = KeyService(database)
        limits = LimitService(RateBuckets(None), self.settings.default_limits)
        self.datasets = DatasetService(database, FileStore(str(self.files), home / "cache"), self.settings, limits)
        self.app = FastAPI(max_body_size=1_000)  # as for JSON: an upload's own limit must win
        self.app.state.services = SimpleNamespace(
            keys=keys, limits=limits, datasets=self.datasets, settings=self.settings
        )
        self.app.include_router(router(self.settings))
        install_error_handlers(self.app)
        secret = keys.ensure_admin_key(home / "admin.key")
        assert secret is not None
        self.client = self.client_with(secret)

    def client_with(self, secret: str | None) -> TestClient:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return TestClient(self.app, raise_server_exceptions=False, headers=headers)

    def client_of_another_project(self) -> TestClient:
        project = ProjectRow(id=new_id("proj"), name="another", created_at=0.0)
        key, secret = new_key(project.id, "k", ["datasets"])
        with self.database.write() as session:
            session.add(project)
            session.flush()
            session.add(key)
        return self.client_with(secret)

    def upload(
        self, content: bytes | None = None, filename: str = "data.csv", *, key: str | None = None, **form: str
    ) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        files = {"file": (filename, as_csv(ROWS) if content is None else content)}
        return self.client.post("/v1/datasets", files=files, data=form, headers=headers)

    def refuse(self, content: bytes, filename: str = "data.csv", **form: str) -> tuple[int, str, str]:
        reply = self.upload(content, filename, **form)
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert self.stored_files() == []
        return reply.status_code, error["param"], error["code"]

    def stored_files(self) -> list[str]:
        """What lies in the store and in the scratch folder."""
        places = (self.files, self.settings.scratch)
        return [path.name for place in places for path in place.rglob("*") if path.is_file()]

    def add_job(self, dataset_id: str, status: str) -> str:
        """A job row that names the dataset."""
        now = time.time()
        with self.database.write() as session:
            dataset = session.get_one(DatasetRow, dataset_id)
            job = JobRow(
                id=new_id("job"),
                project_id=dataset.project_id,
                kind="training",
                queue="cpu",
                name="j",
                dataset_id=dataset_id,
                spec={},
                warnings=[],
                extra={},
                status=status,
                fence=0,
                attempts=0,
                has_progressed=False,
                events_offset=0,
                event_sequence=0,
                progress={},
                metrics={},
                queued_at=now,
                created_at=now,
            )
            session.add(job)
        return job.id


def upload_without_end(client: TestClient) -> tuple[httpx.Response, int]:
    """The reply to an upload that goes on and on, and how many bytes of its file were taken before."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\ntext\n'
        while True:
            sent += 10_000
            yield b"a\n" * 5_000

    async def send() -> httpx.Response:
        headers = {**client.headers, "Content-Type": "multipart/form-data; boundary=b"}
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as sender:
            return await sender.post("/v1/datasets", content=endless(), headers=headers)

    return asyncio.run(send()), sent


@pytest.fixture
def database(sqlite_database_url: str) -> Iterator[Database]:
    database = Database(sqlite_database_url)
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def house(tmp_path: Path, database: Database) -> House:
    return House(tmp_path / "home", database)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FORMATS = {
    "csv": as_csv(ROWS),
    "csv.gz": gzip.compress(as_csv(ROWS)),
    "tsv": as_csv(ROWS, "\t"),
    "jsonl": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "parquet": as_parquet(ROWS),
}


class TestUpload:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_each_format_becomes_the_same_rows(self, house: House, kind: str) -> None:
        reply = house.upload(FORMATS[kind], f"data.{kind}")
        assert reply.status_code == 201
        dataset = reply.json()
        assert reply.headers["location"] == f"/v1/datasets/{dataset['id']}"
        assert dataset["source"] == {
            "filename": f"data.{kind}",
            "format": kind,
            "bytes": len(FORMATS[kind]),
            "sha256": hashlib.sha256(FORMATS[kind]).hexdigest(),
        }
        rows = house.client.get(f"/v1/datasets/{dataset['id']}/rows").json()["data"]
        assert [row["cells"] for row in rows] == STORED

    def test_the_reply_states_what_was_found(self, house: House) -> None:
        before = time.time()
        dataset = house.upload(name="support", metadata='{"team": "nlp"}').json()
        assert dataset.pop("id").startswith("ds_")
        assert before <= dataset.pop("created_at") <= time.time()
        assert len(dataset.pop("sha256")) == 64
        assert dataset.pop("bytes") > 0
        assert dataset.pop("source")["format"] == "csv"
        assert dataset == {
            "object": "dataset",
            "name": "support",
            "rows": 3,
            "headers": ["text", "label", "split"],
            "columns": {"text": "text", "text_pair": None, "label": "label", "group": None, "split": "split"},
            "recognised": ["text", "label", "split"],
            "labels": {"delivery": 1, "refund": 1},
            "splits": {"train": 1, "validation": 1, "test": 1},
            "warnings": ["1 row has no text: row 3.", "1 row has no label: row 3."],
            "metadata": {"team": "nlp"},
        }

    def test_given_columns_are_used_and_the_others_recognised(self, house: House) -> None:
        content = b"body,topic,user,split\nhello,greeting,u1,train\n"
        columns = {"text": "body", "label": "topic", "group": "user"}
        dataset = house.upload(content, columns=json.dumps(columns)).json()
        assert dataset["columns"] == {**columns, "text_pair": None, "split": "split"}
        assert dataset["recognised"] == ["split"]

    def test_a_file_without_labels_is_kept_with_a_warning(self, house: House) -> None:
        reply = house.upload(b'text\n\nhello\n""\n\' \'\n""\n')
        assert reply.status_code == 201
        first, second = reply.json()["warnings"]
        assert first == "2 rows have no text; the first is row 2."
        assert second.startswith("no label column found: none is named label, labels, class")

    def test_encoding_and_delimiter_are_passed_on(self, house: House) -> None:
        content = "text|label\nça va, merci|thanks\n".encode("cp1252")
        dataset = house.upload(content, encoding="cp1252", delimiter="|").json()
        rows = house.client.get(f"/v1/datasets/{dataset['id']}/rows").json()["data"]
        assert rows[0]["cells"] == {"text": "ça va, merci", "label": "thanks"}

    def test_a_filename_is_shown_and_never_a_path(self, house: House) -> None:
        dataset = house.upload(filename="../../etc/pass\u202ewd.csv").json()
        assert dataset["name"] == dataset["source"]["filename"] == "passwd.csv"
        assert house.stored_files() == ["data.parquet"]

    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("C:\\data\\a.csv", "a.csv"),
            ("a\r\nb\0.csv", "ab.csv"),
            ("/", "upload"),
            (None, "upload"),
            ("x" * 300 + ".csv", "x" * 251 + ".csv"),
        ],
    )
    def test_filenames_are_cleaned(self, given: str | None, shown: str) -> None:
        assert clean_filename(given) == shown


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "filename", "code"),
        [
            (b"", "data.csv", "empty_file"),
            (b"text,label\n", "data.csv", "no_rows"),
            (b"text\n\xff\n", "data.csv", "invalid_encoding"),
            (b"text\na\n", "data.csv.gz", "invalid_gzip"),
            (gzip.compress(b"text\na\n", mtime=0)[:-4], "data.csv.gz", "truncated_gzip"),
            (b"text\na\n", "data.parquet", "invalid_parquet"),
            (FORMATS["parquet"][:-20], "data.parquet", "truncated_file"),
            (b'text,label\n"a', "data.csv", "truncated_file"),
            (b"text,label\na,b,c\n", "data.csv", "wrong_cell_count"),
            (b"text,text\na,b\n", "data.csv", "duplicate_column"),
            (b'{"text": 1', "data.jsonl", "invalid_json"),
            (b"[]", "data.jsonl", "not_an_object"),
            (b"text\n" + b"a" * 100_001, "data.csv", "file_too_large"),
            (b"text\n" + b"a\n" * 1_001, "data.csv", "too_many_rows"),
        ],
    )
    def test_a_bad_file_is_refused(
        self, tmp_path: Path, database: Database, content: bytes, filename: str, code: str
    ) -> None:
        house = House(tmp_path / "home", database, max_dataset_bytes=100_000, max_dataset_rows=1_000)
        assert house.refuse(content, filename) == (422, "/file", code)

    @pytest.mark.parametrize(
        ("form", "param", "code"),
        [
            ({"columns": "text"}, "/columns", "invalid_json"),
            ({"columns": '["text"]'}, "/columns", "invalid_json"),
            ({"columns": '{"text": 1}'}, "/columns/text", "invalid_value"),
            ({"columns": '{"txet": "a"}'}, "/columns/txet", "unknown_field"),
            ({"columns": '{"label": "b"}'}, "/columns/label", "unknown_column"),
            ({"encoding": "utf-9"}, "/encoding", "unknown_encoding"),
            ({"delimiter": "ab"}, "/delimiter", "invalid_delimiter"),
            ({"name": "n" * 256}, "/name", "invalid_value"),
            ({"metadata": "{"}, "/metadata", "invalid_json"),
            ({"metadata": '{"a": "\\ud800"}'}, "/metadata", "invalid_json"),
            ({"metadata": '{"a": 1}'}, "/metadata/a", "invalid_value"),
            ({"metadata": json.dumps({"a": "v" * 513})}, "/metadata/a", "invalid_value"),
            ({"metadata": json.dumps({"k" * 65: "v"})}, f"/metadata/{'k' * 65}", "invalid_value"),
            ({"metadata": json.dumps({str(n): "" for n in range(17)})}, "/metadata", "invalid_value"),
            ({"metadata": json.dumps({"team": "n\x00lp"})}, "/metadata", "invalid_value"),
        ],
    )
    def test_a_bad_field_is_refused(self, house: House, form: dict[str, str], param: str, code: str) -> None:
        assert house.refuse(b"text,a\nx,y\n", **form) == (422, param, code)

    def test_metadata_at_its_limits_is_kept(self, house: House) -> None:
        metadata = {f"{number:02}" + "é" * 62: "🙂" * 512 for number in range(16)}
        reply = house.upload(metadata=json.dumps(metadata))
        assert reply.status_code == 201
        assert reply.json()["metadata"] == metadata

    def test_a_form_without_a_file_is_refused(self, house: House) -> None:
        reply = house.client.post("/v1/datasets", files={"name": (None, "n")})
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "missing_field")

    def test_a_file_without_curls_at_sign_is_refused_with_a_hint(self, house: House) -> None:
        error = house.client.post("/v1/datasets", files={"file": (None, "data.csv")}).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "/file")
        assert "-F file=@NAME" in error["message"]

    def test_a_misspelt_form_field_is_refused_with_a_hint(self, house: House) -> None:
        form = {"colums": '{"text": "body"}'}
        error = house.client.post("/v1/datasets", data=form, files={"file": b"text,label\na,b\n"}).json()["error"]
        assert (error["code"], error["param"]) == ("unknown_field", "/colums")
        assert "Did you mean 'columns'?" in error["message"]

    @pytest.mark.parametrize("cut", ["in the file", "in a later field", "before the last boundary"])
    def test_a_form_that_was_cut_off_is_refused_and_nothing_of_it_is_taken(self, house: House, cut: str) -> None:
        form = (
            '--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\ntext,label\na,b\nc,d\n\r\n'
            '--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nmine\r\n--b--\r\n'
        )
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        ends = {
            "in the file": form.index("c,d"),
            "in a later field": form.index("ne\r"),
            "before the last boundary": -7,
        }
        reply = house.client.post("/v1/datasets", content=form[: ends[cut]], headers=headers)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "invalid_form")
        assert "was cut off" in error["message"]
        assert house.client.get("/v1/datasets").json()["data"] == []
        assert house.client.post("/v1/datasets", content=form, headers=headers).json()["name"] == "mine"

    def test_a_broken_form_is_refused(self, house: House) -> None:
        reply = house.client.post("/v1/datasets", content=b"", headers={"Content-Type": "multipart/form-data"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_form")

    @pytest.mark.parametrize("content_type", ["text/csv", "application/json", "application/x-www-form-urlencoded", ""])
    def test_a_body_that_is_no_form_of_files_is_refused(self, house: House, content_type: str) -> None:
        reply = house.client.post("/v1/datasets", content=b"text", headers={"Content-Type": content_type})
        assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")

    def test_an_upload_over_the_limit_is_refused_by_its_declared_length(self, house: House) -> None:
        assert house.upload(b"text\n" + b"a" * MAX_UPLOAD).status_code == 413
        assert house.stored_files() == []

    def test_an_upload_over_the_limit_is_refused_while_it_streams(self, house: House) -> None:
        reply, sent = upload_without_end(house.client)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
        assert f"larger than {MAX_UPLOAD:,} bytes (MINIMAND_MAX_UPLOAD_BYTES)" in reply.json()["error"]["message"]
        assert 0 < sent <= MAX_UPLOAD + 10_000

    def test_an_upload_beyond_its_keys_rate_is_not_read(self, house: House) -> None:
        key, secret = new_key(FIRST_PROJECT, "k", ["datasets"], Limits(requests_per_minute=2))
        with house.database.write() as session:
            session.add(key)
        client = house.client_with(secret)
        statuses = [client.get("/v1/datasets").status_code for _ in range(2)]
        reply, sent = upload_without_end(client)
        assert statuses == [200, 200]
        assert (reply.status_code, reply.json()["error"]["code"], sent) == (429, "rate_limit_exceeded", 0)

    def test_the_kind_of_a_body_is_known_in_any_case(self, house: House) -> None:
        reply = house.client.post(
            "/v1/datasets",
            content=b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ntext\na\r\n--b--\r\n',
            headers={"Content-Type": "Multipart/Form-Data; boundary=b"},
        )
        assert reply.status_code == 201, reply.text

    def test_a_parser_that_takes_too_long_is_stopped(self, tmp_path: Path, database: Database) -> None:
        house = House(tmp_path / "home", database, parse_timeout_seconds=0.01)
        assert house.refuse(b"text\na\n") == (422, "/file", "parse_timeout")

    def test_a_file_that_needs_too_much_memory_is_refused(self, tmp_path: Path, database: Database) -> None:
        house = House(tmp_path / "home", database, parse_memory_bytes=500_000_000)
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000), ["x" * 900_000])
        bomb = io.BytesIO()
        parquet.write_table(pa.table({"text": texts}), bomb, store_schema=False)
        assert len(bomb.getvalue()) < MAX_UPLOAD
        assert house.refuse(bomb.getvalue(), "data.parquet") == (422, "/file", "parser_out_of_memory")


class TestDoor:
    CALLS = (
        ("POST", "/v1/datasets"),
        ("GET", "/v1/datasets"),
        *(
            (method, f"/v1/datasets/ds_x{rest}")
            for method, rest in [("GET", ""), ("GET", "/rows"), ("GET", "/content")]
        ),
        ("DELETE", "/v1/datasets/ds_x"),
    )

    @pytest.mark.parametrize(("method", "path"), CALLS)
    @pytest.mark.parametrize("secret", [None, "mk_wrong"])
    def test_without_a_key_nothing_answers(self, house: House, method: str, path: str, secret: str | None) -> None:
        reply = house.client_with(secret).request(method, path)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"

    def test_a_strangers_upload_is_not_read(self, house: House) -> None:
        sent = 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(10):
                sent += 1
                yield b"a" * 1_000

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        reply = house.client_with(None).post("/v1/datasets", content=body(), headers=headers)
        assert (reply.status_code, sent) == (401, 0)

    @pytest.mark.parametrize(("method", "path"), [call for call in CALLS if "ds_x" in call[1]])
    def test_another_projects_dataset_is_not_there(self, house: House, method: str, path: str) -> None:
        dataset_id = house.upload().json()["id"]
        for client, identifier in [(house.client_of_another_project(), dataset_id), (house.client, "ds_x")]:
            reply = client.request(method, path.replace("ds_x", identifier))
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "dataset_not_found")
        assert house.client.get(f"/v1/datasets/{dataset_id}").status_code == 200

    def test_a_list_shows_no_other_project(self, house: House) -> None:
        house.upload()
        assert house.client_of_another_project().get("/v1/datasets").json()["data"] == []


class TestReading:
    def test_one_dataset_is_read_as_it_was_answered(self, house: House) -> None:
        dataset = house.upload().json()
        assert house.client.get(f"/v1/datasets/{dataset['id']}").json() == dataset

    def test_pages_of_datasets_skip_and_repeat_nothing_while_others_arrive(self, house: House) -> None:
        ids = [house.upload(b"text\na\n").json()["id"] for _ in range(5)]
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            page = house.client.get("/v1/datasets", params=query).json()
            assert page["object"] == "list"
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            seen += [dataset["id"] for dataset in page["data"]]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
            house.upload(b"text\nlater\n")
        assert seen == ids[::-1]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    @pytest.mark.parametrize("limit", [1, 3, 10, 100])
    def test_pages_of_rows_skip_and_repeat_nothing(self, house: House, order: str, limit: int) -> None:
        numbers = list(range(1, 11))
        content = "text\n" + "".join(f"t{number}\n" for number in numbers)
        path = f"/v1/datasets/{house.upload(content.encode()).json()['id']}/rows"
        seen: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": limit, "order": order}
        while (page := house.client.get(path, params=query).json())["has_more"]:
            assert len(page["data"]) == limit
            seen += page["data"]
            query["after"] = page["last_id"]
        seen += page["data"]
        assert seen == [
            {"id": f"row_{number:09}", "object": "dataset.row", "cells": {"text": f"t{number}"}}
            for number in (numbers if order == "asc" else numbers[::-1])
        ]

    def test_rows_after_the_last_are_an_empty_page(self, house: House) -> None:
        path = f"/v1/datasets/{house.upload().json()['id']}/rows"
        for query in (
            {"after": "row_000000003"},
            {"after": "row_999999999"},
            {"after": "row_000000001", "order": "desc"},
        ):
            page = house.client.get(path, params=query).json()
            assert page == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}

    @pytest.mark.parametrize("after", ["3", "row_3", "row_00000000a", "ds_000000001", "row_٠٠٠٠٠٠٠٠١"])
    def test_a_cursor_that_is_no_row_is_refused(self, house: House, after: str) -> None:
        reply = house.client.get(f"/v1/datasets/{house.upload().json()['id']}/rows", params={"after": after})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (422, "after", "invalid_cursor")

    def test_the_content_is_the_parquet_file_that_the_sha256_names(self, house: House) -> None:
        dataset = house.upload().json()
        reply = house.client.get(f"/v1/datasets/{dataset['id']}/content")
        assert hashlib.sha256(reply.content).hexdigest() == dataset["sha256"]
        assert int(reply.headers["content-length"]) == len(reply.content) == dataset["bytes"]
        assert reply.headers["content-type"] == "application/vnd.apache.parquet"
        assert parquet.read_table(io.BytesIO(reply.content)).to_pylist() == STORED

    def test_the_service_hands_on_columns_and_facts(self, house: House) -> None:
        dataset_id = house.upload().json()["id"]
        with house.database.read() as session:
            project_id = session.get_one(DatasetRow, dataset_id).project_id
        row = house.datasets.get_row(project_id, dataset_id)
        assert house.datasets.facts(row).rows == 3
        assert house.datasets.read_column_values(row, ["label"]) == {"label": ["delivery", "refund", ""]}
        with pytest.raises(NotFoundError, match="ds_x"):
            house.datasets.get_row(project_id, "ds_x")


class TestDelete:
    def test_a_deleted_dataset_is_gone_with_its_file(self, house: House) -> None:
        path = f"/v1/datasets/{house.upload().json()['id']}"
        reply = house.client.delete(path)
        assert (reply.status_code, reply.content) == (204, b"")
        assert house.client.get(path).status_code == 404
        assert house.client.delete(path).status_code == 404
        assert house.stored_files() == []

    @pytest.mark.parametrize("status", ["queued", "running", "paused"])
    def test_a_dataset_that_a_live_job_uses_is_kept(self, house: House, status: str) -> None:
        dataset_id = house.upload().json()["id"]
        job_id = house.add_job(dataset_id, status)
        reply = house.client.delete(f"/v1/datasets/{dataset_id}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "dataset_in_use")
        assert job_id in reply.json()["error"]["message"]
        assert house.client.get(f"/v1/datasets/{dataset_id}/content").status_code == 200

    @pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
    def test_a_dataset_of_jobs_that_ended_can_be_deleted(self, house: House, status: str) -> None:
        dataset_id = house.upload().json()["id"]
        house.add_job(dataset_id, status)
        assert house.client.delete(f"/v1/datasets/{dataset_id}").status_code == 204


class TestIdempotency:
    def test_the_same_key_and_body_replay_the_reply(self, house: House) -> None:
        first, second = (house.upload(key="k", name="n", metadata='{"a": "b"}') for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.json() == second.json()
        assert first.headers["location"] == second.headers["location"]
        assert house.stored_files() == ["data.parquet"]

    @pytest.mark.parametrize("other", [{"content": b"text\nother\n"}, {"name": "other"}, {"filename": "other.csv"}])
    def test_the_same_key_with_another_request_is_refused(self, house: House, other: dict[str, Any]) -> None:
        assert house.upload(key="k").status_code == 201
        error = house.upload(key="k", **other).json()["error"]
        assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
        assert len(house.stored_files()) == 1

    def test_without_a_key_each_upload_makes_its_own(self, house: House) -> None:
        assert house.upload().json()["id"] != house.upload().json()["id"]

    def test_a_key_belongs_to_the_api_key_that_sent_it(self, house: House) -> None:
        mine = house.upload(key="k").json()
        house.client = house.client_of_another_project()
        assert house.upload(key="k").json()["id"] != mine["id"]

    def test_a_refused_upload_leaves_its_key_free(self, house: House) -> None:
        assert house.upload(b"", key="k").status_code == 422
        assert house.upload(key="k").status_code == 201

    def test_a_key_is_free_again_after_a_day(self, house: House) -> None:
        first = house.upload(key="k").json()
        with house.database.write() as session:
            session.get_one(DatasetRow, first["id"]).created_at -= KEPT_SECONDS
        second = house.upload(b"text\nother\n", key="k").json()
        assert first["id"] != second["id"]
        assert house.upload(b"text\nother\n", key="k").json() == second

    @pytest.mark.parametrize("key", ["", "k" * 256])
    def test_a_key_of_no_or_too_many_characters_is_refused(self, house: House, key: str) -> None:
        reply = house.upload(key=key)
        assert (reply.status_code, reply.json()["error"]["param"]) == (422, "Idempotency-Key")

    def test_of_requests_in_a_race_one_makes_the_dataset(self, tmp_path: Path, database_url: str) -> None:
        database = Database(database_url)
        Base.metadata.create_all(database.engine)
        house = House(tmp_path / "home", database)
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: house.upload(key="k"), range(4)))
        database.close()
        assert [reply.status_code for reply in replies] == [201] * 4
        assert len({reply.json()["id"] for reply in replies}) == 1
        assert house.stored_files() == ["data.parquet"]


def test_a_dataset_that_is_deleted_while_it_is_read_is_not_found(house: House) -> None:
    dataset = house.upload().json()["id"]
    row = house.datasets.get_row(FIRST_PROJECT, dataset)
    assert house.client.delete(f"/v1/datasets/{dataset}").status_code == 204
    with pytest.raises(NotFoundError):
        house.datasets.read_rows(row, PageRequest(order="asc"))
    with pytest.raises(NotFoundError):
        house.datasets.read_column_values(row, ["text"])


def test_uploads_that_wait_their_turn_take_no_threads_from_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = 60  # more than the threads that routes run in
    places = house.datasets._parser._places
    with house.client as client, ThreadPoolExecutor(uploads + 1) as sending:  # one event loop for all calls
        for _ in range(parser.CONCURRENT_PARSERS):
            places.acquire()
        replies = [sending.submit(house.upload) for _ in range(uploads)]
        try:
            assert sending.submit(client.get, "/v1/datasets").result(timeout=10).json()["data"] == []
        finally:
            monkeypatch.setattr(parser, "WAIT_SECONDS", 0.0)
        for reply in replies:
            refused = reply.result()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "parsers_busy")
            assert refused.headers["retry-after"] == "10"
