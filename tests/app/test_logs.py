"""Lines of the log: each is about a job or a request, and no one had to name it."""

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.logs import JsonFormatter, TextFormatter, log_about
from tests.service import AppHouse

Lines = Callable[[], list[dict[str, Any]]]

log = logging.getLogger("tests.logs")


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What was logged as JSON since the test began."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.getLogger().removeHandler(handler)


def _format(formatter: logging.Formatter, **about: str | int) -> str:
    def write() -> str:
        log_about(**about)
        return formatter.format(log.makeRecord(log.name, logging.WARNING, "f", 1, "%s is\nlost", ("ñ",), None))

    return copy_context().run(write)


def test_a_line_of_text_names_what_it_is_about_before_the_message() -> None:
    line = _format(TextFormatter(), job_id="job_1", fence=2)
    assert line.endswith(" WARNING tests.logs job_id=job_1 fence=2: ñ is\nlost")
    assert _format(TextFormatter()).endswith(" WARNING tests.logs: ñ is\nlost")


def test_a_line_of_json_is_one_object_on_one_line() -> None:
    line = _format(JsonFormatter(), job_id="job_1", fence=2)
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "WARNING",
        "logger": "tests.logs",
        "message": "ñ is\nlost",
        "job_id": "job_1",
        "fence": 2,
    }


def test_an_exception_comes_with_its_traceback(lines: Lines) -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        log.exception("a fault")
    assert lines()[0]["exception"].endswith("builtins.KeyError")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_no_line_holds_the_password_of_a_url_wherever_it_came_from(formatter: logging.Formatter) -> None:
    url = "redis://:canary@host:6379/0"
    try:
        raise ConnectionError(f"cannot reach postgresql+psycopg://user:canary@host/db?password=canary, nor {url}")
    except ConnectionError:
        record = log.makeRecord(log.name, logging.ERROR, "f", 1, "the broker %s is away", (url,), sys.exc_info())
    line = formatter.format(record)
    assert "canary" not in line
    assert "redis://:***@host:6379/0 is away" in line
    assert "postgresql+psycopg://user:***@host/db?password=***" in line


def test_what_a_record_is_about_ends_with_its_context(lines: Lines) -> None:
    def about_a_job() -> None:
        log_about(job_id="job_1")
        log_about(fence=1)
        log.warning("inside")
        thread = threading.Thread(target=copy_context().run, args=(log.warning, "beside"))
        thread.start()
        thread.join()

    copy_context().run(about_a_job)
    log.warning("after")
    inside, beside, after = lines()
    assert inside["job_id"] == beside["job_id"] == "job_1"
    assert inside["fence"] == beside["fence"] == 1
    assert "job_id" not in after


def test_a_record_of_a_request_carries_its_id_also_of_its_failure(tmp_path: Path, lines: Lines) -> None:
    house = AppHouse(tmp_path)

    @house.app.get("/fails")
    def fail() -> None:
        log.warning("on the way")
        raise RuntimeError("a fault of ours")

    reply = house.client.get("/fails", headers={"x-request-id": "mine"})
    house.close()
    assert reply.status_code == 500
    told = [line for line in lines() if line["level"] in ("WARNING", "ERROR")]
    assert [line["message"] for line in told] == ["on the way", "unhandled error in GET /fails"]
    assert {line["request_id"] for line in told} == {"mine"}


CANARY = "canary-5f1c9e"


def test_an_unexpected_fault_is_logged_by_kind_and_place_without_its_message(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an exception says may quote a row's text, a statement's parameters or a URL's password."""
    house = AppHouse(tmp_path)

    def fail(*_: object) -> None:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(f"no such text: {CANARY}") from error

    monkeypatch.setattr(house.services.models, "list_page", fail)
    reply = house.client.get("/v1/models", headers={"x-request-id": "r-1"})
    house.close()
    assert reply.status_code == 500
    assert CANARY not in reply.text
    (told,) = [line for line in lines() if line["level"] == "ERROR"]
    assert CANARY not in json.dumps(told)
    assert "builtins.KeyError" in told["exception"]
    assert told["exception"].endswith("builtins.ValueError")
    assert "test_logs.py" in told["exception"]


def test_a_line_of_text_leaves_out_the_message_too() -> None:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        record = log.makeRecord(log.name, logging.ERROR, "f", 1, "it failed", (), (ValueError, error, None))
    line = TextFormatter().format(record)
    assert line.endswith("\nbuiltins.ValueError")
    assert CANARY not in line


def test_a_statement_that_fails_does_not_tell_its_parameters(tmp_path: Path) -> None:
    house = AppHouse(tmp_path)
    with pytest.raises(Exception, match="hidden") as caught, house.database.read() as session:
        session.execute(text("SELECT no_such_column FROM jobs WHERE name = :name"), {"name": CANARY})
    house.close()
    assert CANARY not in str(caught.value)
