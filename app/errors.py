"""What the service refuses, as exceptions. `app.http.errors` turns them into replies; nothing else does."""

from collections.abc import Sequence

_NAMED_JOBS = 5


class ServiceError(Exception):
    """A refusal a caller can act on.

    `code` is the stable machine word, `status` the HTTP status, `param` a JSON pointer to what was wrong.
    """

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, code: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def as_dict(self) -> dict[str, str | None]:
        """The error's body, the same for a reply and for a failed job."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class UnfitBaseError(Exception):
    """A base model that an operator registered cannot be one."""


class BadRequestError(ServiceError):
    """The request could not be read."""


class AuthenticationError(ServiceError):
    """No key, or one that opens nothing."""

    status = 401
    type = "authentication_error"


class PermissionDeniedError(ServiceError):
    """The key is known, and may not do this."""

    status = 403
    type = "permission_error"


class NotFoundError(ServiceError):
    """No such thing in the caller's project."""

    status = 404
    type = "not_found_error"


class ConflictError(ServiceError):
    """The thing exists, in a state that forbids what was asked."""

    status = 409
    type = "conflict_error"


class InUseError(ConflictError):
    """A thing that cannot be deleted while jobs need it."""

    def __init__(self, kind: str, thing_id: str, job_ids: Sequence[str]) -> None:
        named, more = job_ids[:_NAMED_JOBS], len(job_ids) - _NAMED_JOBS
        shown = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        super().__init__(
            f"The {kind} '{thing_id}' is still used by {shown}. Cancel what has not ended, or wait for it.",
            code=f"{kind}_in_use",
        )


class SlowClientError(ServiceError):
    """The request did not come in the time that it may take."""

    status = 408


class HeadTooLargeError(ServiceError):
    """The request's headers are larger than any may be."""

    status = 431


class PayloadTooLargeError(ServiceError):
    """More than this caller may ever send at once."""

    status = 413


class UnsupportedMediaTypeError(ServiceError):
    """The body's kind isn't one this route reads."""

    status = 415


class InvalidInputError(ServiceError):
    """The request was read, and asks for something that cannot be done."""

    status = 422


class TooManyRequestsError(ServiceError):
    """More is asked for at once than is taken: ask again a little later."""

    status = 429
    type = "rate_limit_error"


class UnavailableError(ServiceError):
    """Nothing is wrong with the request: ask again later."""

    status = 503
    type = "unavailable_error"
