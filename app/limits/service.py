"""Limits of keys and projects: rates are counted in buckets, what lives or is stored is counted in the database.

Predictions have no limit unless one is set: their bound is the queue before the model. It knows no HTTP.
"""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from app.errors import PayloadTooLargeError, PermissionDeniedError, TooManyRequestsError
from app.keys.caller import Caller
from app.limits import repository
from app.limits.rates import Rate, RateBuckets, Taken
from app.limits.schemas import Limits

Kind = Literal["requests", "predictions"]

_MINUTE, _DAY = 60, 86_400
# A job that has to wait for another's end: nobody knows how long, and a minute costs nobody much.
_RETRY_JOBS_SECONDS = 60


@dataclass(frozen=True)
class _Limit:
    """So much of one thing, for a key or for a project."""

    owner: Literal["key", "project"]
    counted: str  # the lineage of the key, or the project's id
    amount: int

    @property
    def lineage(self) -> str | None:
        """Whose things count; None for all of the project."""
        return self.counted if self.owner == "key" else None


class LimitService:
    """Says whether a caller may."""

    def __init__(self, buckets: RateBuckets, defaults: Limits) -> None:
        """defaults: of every project that has no limit of its own."""
        self._buckets = buckets
        self._defaults = defaults

    def _of(self, caller: Caller, name: str) -> list[_Limit]:
        """The limits that hold for a caller, by their field in `Limits`: its key's own, and its project's."""
        of_key = caller.key_limits.get(name)
        of_project = caller.project_limits.get(name, getattr(self._defaults, name))
        found = [] if of_key is None else [_Limit("key", caller.lineage, of_key)]
        return found if of_project is None else [*found, _Limit("project", caller.project_id, of_project)]

    def rates(self, caller: Caller, kind: Kind) -> list[Rate]:
        """The rates that a call counts against."""
        return [Rate(kind, one.counted, one.amount, _MINUTE) for one in self._of(caller, f"{kind}_per_minute")]

    def take(self, rates: list[Rate]) -> list[Taken]:
        """Count a call, or nothing where one of the rates has nothing left."""
        return self._buckets.take(rates)

    def admit(self, taken: list[Taken]) -> None:
        """Raise TooManyRequestsError where something was not counted."""
        if any(one.wait for one in taken):
            raise _too_many(max(taken, key=lambda one: one.wait))

    def take_upload(self, caller: Caller, size: int) -> None:
        """Count an upload's bytes. Raises PayloadTooLargeError where it is more than a day's, TooManyRequestsError."""
        limits = self._of(caller, "upload_bytes_per_day")
        for one in limits:
            if size > one.amount:
                raise PayloadTooLargeError(
                    f"The upload has {size:,} bytes, and this {one.owner} may upload {one.amount:,} a day. Send a "
                    "smaller file, or ask who set the limit for more (upload_bytes_per_day).",
                    code="upload_over_limit",
                )
        if limits:
            rates = [Rate("upload_bytes", one.counted, one.amount, _DAY) for one in limits]
            self.admit(self._buckets.take(rates, size))

    def check_job(self, session: Session, caller: Caller) -> None:
        """Raise where the caller may have no further job. In the transaction that adds it: of two at once one waits
        for the other.
        """
        if limits := self._of(caller, "live_jobs"):
            repository.lock_project(session, caller.project_id)
        for one in limits:
            if (live := repository.live_jobs(session, caller.project_id, one.lineage)) >= one.amount:
                raise TooManyRequestsError(
                    f"This {one.owner} has {live} jobs that have not ended, and may have {one.amount}. Cancel one, or "
                    "send this again once one has ended.",
                    code="too_many_live_jobs",
                    retry_after=_RETRY_JOBS_SECONDS,
                )
        self.check_stored(session, caller, 1)  # of the model that it will make, nobody knows the size yet

    def check_stored(self, session: Session, caller: Caller, adding: int) -> None:
        """Raise PermissionDeniedError where the caller may not store so many bytes more. In the transaction that adds
        them.
        """
        if limits := self._of(caller, "stored_bytes"):
            repository.lock_project(session, caller.project_id)
        for one in limits:
            stored = repository.stored_bytes(session, caller.project_id, one.lineage)
            if stored + adding > one.amount:
                raise PermissionDeniedError(
                    f"This {one.owner} stores {stored:,} bytes of datasets and models, this would add {adding:,} or "
                    f"more, and it may store {one.amount:,}. Delete datasets or models that are no longer needed.",
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
