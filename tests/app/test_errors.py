"""Errors: one shape for every failure, and nothing of our insides in it."""

import errno
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import HTTPException

from app.errors import NotFoundError, ServiceError, UnavailableError
from tests.service import AppHouse, error_of

SECRET = "the secret of the trade, row 17"


class BrokenHouse(AppHouse):
    """The application, with a few routes that fail in their own ways."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)

        def fail(kind: str) -> None:
            raise {
                "fault": RuntimeError(SECRET),
                "busy": UnavailableError("Too much to do.", code="busy", retry_after=7),
                "later": UnavailableError("Too much to do.", code="busy"),
                "gone": NotFoundError("It isn't there.", code="thing_not_found", param="/thing"),
                "teapot": HTTPException(418, "short and stout"),
                "full": OSError(errno.ENOSPC, "No space left on device", SECRET),
                "denied": PermissionError(errno.EACCES, "Permission denied", SECRET),
            }[kind]

        self.app.add_api_route("/fail/{kind}", fail, methods=["GET", "POST"], include_in_schema=False)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenHouse]:
    house = BrokenHouse(tmp_path_factory.mktemp("errors"))
    yield house
    house.close()


@pytest.mark.parametrize("kind", ["fault", "denied"])
def test_an_unhandled_fault_is_a_500_that_tells_nothing_of_our_insides(
    house: BrokenHouse, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    with caplog.at_level(logging.ERROR):
        reply = house.client.get(f"/fail/{kind}", headers={"x-request-id": "my-request"})
    assert reply.status_code == 500
    error = error_of(reply)
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "internal_error")
    assert reply.headers["x-request-id"] == "my-request"
    for inside in (SECRET, "RuntimeError", "Traceback", ".py"):
        assert inside not in reply.text
    # Whoever runs the service finds the whole story in the log.
    assert SECRET in caplog.text


def test_a_full_disk_is_said_and_may_pass(house: BrokenHouse) -> None:
    reply = house.client.get("/fail/full")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "60")
    assert error_of(reply)["code"] == "disk_full"
    assert SECRET not in reply.text


def test_a_refusal_keeps_its_words_its_place_and_its_status(house: BrokenHouse) -> None:
    reply = house.client.get("/fail/gone")
    assert reply.status_code == 404
    assert error_of(reply) == {
        "message": "It isn't there.",
        "type": "not_found_error",
        "param": "/thing",
        "code": "thing_not_found",
    }


def test_a_refusal_that_passes_says_when_to_come_again(house: BrokenHouse) -> None:
    reply = house.client.get("/fail/busy")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")
    assert error_of(reply)["type"] == "unavailable_error"


def test_what_the_framework_refuses_has_the_same_shape(house: BrokenHouse) -> None:
    reply = house.client.get("/fail/teapot")
    assert reply.status_code == 418
    assert error_of(reply)["message"] == "short and stout"


@pytest.mark.parametrize("path", ["/fail/gone", "/v1/jobs", "/nowhere", "/healthz", "/docs", "/openapi.json"])
def test_every_reply_names_its_request(house: BrokenHouse, path: str) -> None:
    replies = [house.client.get(path), house.client_with(None).get(path), house.client.post(path)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(given.startswith("req_") for given in ids)
    assert len(set(ids)) == len(ids)
    assert house.client.get(path, headers={"x-request-id": "Mine.1-2_3"}).headers["x-request-id"] == "Mine.1-2_3"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "<script>"])
def test_a_request_id_that_is_no_plain_word_is_replaced(house: BrokenHouse, given: str) -> None:
    reply = house.client.get("/healthz", headers={b"x-request-id": given.encode()})
    assert reply.headers["x-request-id"].startswith("req_")


def test_every_refusal_has_a_status_and_a_type_of_its_kind() -> None:
    kinds = {kind.__name__: (kind.status, kind.type) for kind in ServiceError.__subclasses__()}
    assert kinds == {
        "BadRequestError": (400, "invalid_request_error"),
        "AuthenticationError": (401, "authentication_error"),
        "PermissionDeniedError": (403, "permission_error"),
        "NotFoundError": (404, "not_found_error"),
        "ConflictError": (409, "conflict_error"),
        "SlowClientError": (408, "invalid_request_error"),
        "HeadTooLargeError": (431, "invalid_request_error"),
        "PayloadTooLargeError": (413, "invalid_request_error"),
        "UnsupportedMediaTypeError": (415, "invalid_request_error"),
        "InvalidInputError": (422, "invalid_request_error"),
        "TooManyRequestsError": (429, "rate_limit_error"),
        "UnavailableError": (503, "unavailable_error"),
    }


@pytest.mark.parametrize("body", ['{"dataset": ', "", "[" * 100_000, b'{"a": "\xff"}', "nul"])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/predictions"])
def test_a_body_that_is_no_json_is_one_error_everywhere(house: BrokenHouse, path: str, body: str | bytes) -> None:
    reply = house.client.post(path, content=body, headers={"Content-Type": "application/json"})
    if not body:
        assert (reply.status_code, error_of(reply)["code"]) == (422, "missing_field")
    else:
        assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_json")


def test_a_body_that_is_no_json_is_told_where_it_ceases_to_be_any(house: BrokenHouse) -> None:
    headers = {"Content-Type": "application/json"}
    error = error_of(house.client.post("/v1/jobs", content='{"dataset": ds_1}', headers=headers))
    assert error["message"] == "the body is not JSON: Expecting value (after character 12)."


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/validate", "/v1/predictions", "/v1/evaluations"])
def test_half_of_a_surrogate_pair_is_refused_in_words_that_can_be_sent(house: BrokenHouse, path: str) -> None:
    for body in ('{"dataset": "\\ud800", "model": "\\ud800"}', '{"\\udfff": 1}'):
        reply = house.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 422
        assert "\\ud" in error_of(reply)["message"]
    loss = '{"dataset": "ds_1", "loss": {"type": "\\ud800"}}'
    assert house.client.post("/v1/jobs", content=loss, headers={"Content-Type": "application/json"}).status_code == 422


def test_a_refusal_for_now_always_says_when_to_come_again(house: BrokenHouse) -> None:
    reply = house.client.get("/fail/later")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
