"""Limits of keys and projects: rates are counted in buckets, what lives or is stored is counted in the database.

Predictions have no limit unless one is set: their bound is the queue before the model. It knows no HTTP.
"""

from typing import Literal

from sqlalchemy.orm import Session

from app.errors import PayloadTooLargeError, PermissionDeniedError, TooManyRequestsError
from app.jobs import repository as jobs
from app.keys.caller import Caller
from app.limits import repository
from app.limits.rates import Rate, RateBuckets, Taken
from app.limits.schemas import Limits

Kind = Literal["requests", "predictions"]

_MINUTE, _DAY = 60, 86_400
# A job that has to wait for another's end: nobody knows how long, and a minute costs nobody much.
_RETRY_JOBS_SECONDS = 60


class LimitService:
    """Says whether a caller may."""

    def __init__(self, buckets: RateBuckets, defaults: Limits) -> None:
        """defaults: of every project that has no limit of its own."""
        self._buckets = buckets
        self._defaults = defaults

    def of_project(self, caller: Caller, name: str) -> int | None:
        """A limit of the caller's project, by its field in `Limits`; None where there is none."""
        found: int | None = caller.project_limits.get(name, getattr(self._defaults, name))
        return found

    def rates(self, caller: Caller, kind: Kind) -> list[Rate]:
        """The rates that a call counts against: its key's own, and its project's."""
        name = f"{kind}_per_minute"
        owners = ((caller.key_id, caller.key_limits.get(name)), (caller.project_id, self.of_project(caller, name)))
        return [Rate(kind, owner, amount, _MINUTE) for owner, amount in owners if amount is not None]

    def take(self, rates: list[Rate]) -> list[Taken]:
        """Count a call, or nothing where one of the rates has nothing left."""
        return self._buckets.take(rates)

    def admit(self, taken: list[Taken]) -> None:
        """Raise TooManyRequestsError where a call was not counted."""
        if any(one.wait for one in taken):
            raise _too_many(max(taken, key=lambda one: one.wait))

    def take_upload(self, caller: Caller, size: int) -> None:
        """Count an upload's bytes. Raises PayloadTooLargeError where it is more than a day's, TooManyRequestsError."""
        amount = self.of_project(caller, "upload_bytes_per_day")
        if amount is None:
            return
        if size > amount:
            raise PayloadTooLargeError(
                f"The upload has {size:,} bytes, and this project may upload {amount:,} a day. Send a smaller file, or "
                "ask who runs this server for more (upload_bytes_per_day).",
                code="upload_over_limit",
            )
        (taken,) = self._buckets.take([Rate("upload_bytes", caller.project_id, amount, _DAY)], size)
        if taken.wait:
            raise _too_many(taken)

    def check_job(self, session: Session, caller: Caller) -> None:
        """Raise where the project may have no further job. In the transaction that adds it: of two at once one waits
        for the other.
        """
        if (limit := self.of_project(caller, "live_jobs")) is not None:
            repository.lock_project(session, caller.project_id)
            if (live := jobs.count_live(session, caller.project_id)) >= limit:
                raise TooManyRequestsError(
                    f"This project has {live} jobs that have not ended, and may have {limit}. Cancel one, or send this "
                    "again once one has ended.",
                    code="too_many_live_jobs",
                    retry_after=_RETRY_JOBS_SECONDS,
                )
        self.check_stored(session, caller, 1)  # of the model that it will make, nobody knows the size yet

    def check_stored(self, session: Session, caller: Caller, adding: int) -> None:
        """Raise PermissionDeniedError where the project may not store so many bytes more. In the transaction that adds
        them.
        """
        limit = self.of_project(caller, "stored_bytes")
        if limit is None:
            return
        repository.lock_project(session, caller.project_id)
        stored = repository.stored_bytes(session, caller.project_id)
        if stored + adding > limit:
            raise PermissionDeniedError(
                f"This project stores {stored:,} bytes of datasets and models, this would add {adding:,} or more, and "
                f"it may store {limit:,}. Delete datasets or models that are no longer needed.",
                code="storage_quota_exceeded",
            )

    def close(self) -> None:
        """Let go of the broker."""
        self._buckets.close()


def _too_many(taken: Taken) -> TooManyRequestsError:
    rate = taken.rate
    who = "key" if rate.counted.startswith("key_") else "project"
    period = {_MINUTE: "minute", _DAY: "day"}[rate.period]
    wait = max(1, int(taken.wait) + 1)
    return TooManyRequestsError(
        f"This {who} may use {rate.amount:,} {rate.name.replace('_', ' ')} a {period}, and has {taken.remaining:,} "
        f"left. Send this again in {wait} s.",
        code="rate_limit_exceeded",
        retry_after=wait,
    )
