"""Whatever happens to jobs in whatever order: none is lost, none ends twice, and an old claim writes nothing.

Hypothesis makes up the story and shortens one that goes wrong. A second, plain account of every job is kept beside the
database and compared with it after each event; a worker that was killed or stopped may come back and act at any time.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import EventRow, JobRow, ModelRow
from app.jobs import repository
from app.jobs.repository import Claim, LostClaimError, Released, status_event
from app.jobs.states import ENDED
from tests.app.jobs.house import CAP, LEASE, House

STORIES = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,  # the same stories every time: a failure is one of the code, not of the day
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@dataclass
class Expected:
    """What a job must be."""

    status: str = "queued"
    wanted: str | None = None
    fence: int = 0
    lease_until: float | None = None
    attempts: int = 0
    has_progressed: bool = False
    ends: list[str] = field(default_factory=list)
    models: int = 0

    def end(self, status: str) -> None:
        """Into one of the states that nothing leaves."""
        self.status, self.wanted, self.lease_until = status, None, None
        self.ends.append(status)

    def let_go(self, *, charge: bool) -> None:
        """Out of a worker's hands without an end of its own."""
        if charge and not self.has_progressed:
            self.attempts += 1
        if self.wanted == "cancel":
            self.end("cancelled")
        elif self.wanted is None and self.attempts >= CAP:
            self.end("failed")
        else:
            self.status = "paused" if self.wanted == "pause" else "queued"
            self.wanted, self.lease_until = None, None


class Jobs(RuleBasedStateMachine):
    """Callers, workers and the clock, over the SQL that the service runs."""

    database: Database
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.house = House(self.database)
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        """Faults stop; everything that was accepted comes to one end. Then the next story begins on empty tables."""
        try:
            self.drain()
        finally:
            self.house.clear()

    def drain(self) -> None:
        """Workers that never fail take over."""
        self.pass_time(2 * LEASE)
        self.reconcile()  # which may pause one that its dead worker was to pause
        for job, expected in self.expected.items():
            if expected.status == "paused":
                self.resume(job)
        while (claim := self.house.claim()) is not None:
            self.took(claim)
            self.succeed(claim)
        self.accounts_agree()
        assert all(len(expected.ends) == 1 for expected in self.expected.values())

    # ---------------------------------------------------------------------------------------------------------- callers

    @initialize(target=jobs, count=st.integers(1, 3))
    def begin(self, count: int) -> Any:
        """Some jobs are there."""
        return multiple(*(self.submit() for _ in range(count)))

    @rule(target=jobs)
    @precondition(lambda self: len(self.expected) < 6)
    def submit(self) -> str:
        """A caller was told of this job."""
        job = self.house.add()
        self.expected[job] = Expected()
        return job

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        """At once where no worker holds it."""
        expected = self.expected[job]
        ended = self.house.run(repository.end_waiting, job, now=self.house.now)
        told = ended or self.house.run(repository.wish, job, "cancel")
        assert ended == (expected.status in {"queued", "paused"})
        assert told == (expected.status not in ENDED and expected.wanted != "cancel")
        if ended:
            expected.end("cancelled")
        elif told:
            expected.wanted = "cancel"

    @rule(job=jobs)
    def pause(self, job: str) -> None:
        """A wish to cancel is never overwritten."""
        expected = self.expected[job]
        paused = self.house.run(repository.pause_waiting, job)
        told = not paused and self.house.run(repository.wish, job, "pause")
        assert paused == (expected.status == "queued")
        assert told == (expected.status == "running" and expected.wanted != "cancel")
        if paused:
            expected.status = "paused"
        elif told:
            expected.wanted = "pause"

    @rule(job=jobs)
    def resume(self, job: str) -> None:
        """A pause that was not carried out is withdrawn."""
        expected = self.expected[job]
        queued = self.house.run(repository.queue_again, job, now=self.house.now)
        assert queued == (expected.status == "paused")
        if queued:
            expected.status = "queued"
        elif expected.wanted == "pause":
            assert self.house.run(repository.wish, job, None)
            expected.wanted = None

    # ---------------------------------------------------------------------------------------------------------- workers

    @rule(target=claims, owner=st.sampled_from(["a", "b"]))
    def wake(self, owner: str) -> Any:
        """A worker looks for work: because it was told, told twice, or by itself where the message was dropped."""
        claim = self.house.claim(owner=owner)
        waiting = [job for job, expected in self.expected.items() if expected.status == "queued"]
        assert (claim and claim.job_id) == (min(waiting) if waiting else None)
        if claim is None:
            return multiple()
        self.took(claim)
        return claim

    def took(self, claim: Claim) -> None:
        """A worker has a job."""
        expected = self.expected[claim.job_id]
        assert claim.fence == expected.fence + 1
        expected.status, expected.fence = "running", claim.fence
        expected.lease_until, expected.has_progressed = self.house.now + LEASE, False

    @rule(claim=claims)
    def beat(self, claim: Claim) -> None:
        """A lease is renewed, also one that has run out and that nobody took."""
        if self.must_be_held(claim, lambda: self.house.renew(claim)):
            self.expected[claim.job_id].lease_until = self.house.now + LEASE

    @rule(claim=claims)
    def checkpoint(self, claim: Claim) -> None:
        """The trainer has stored one."""
        if self.must_be_held(claim, lambda: self.house.checkpoint(claim, step=1)):
            self.expected[claim.job_id].has_progressed = True

    @rule(claim=claims)
    def report(self, claim: Claim) -> None:
        """The trainer tells how far it is."""
        event = status_event("told", "told")
        self.must_be_held(claim, lambda: self.house.run(repository.take_over, claim, [event], progress={"step": 1}))

    @rule(claim=claims, is_kill=st.booleans())
    def let_go(self, claim: Claim, is_kill: bool) -> None:
        """The trainer died, or the worker was asked to stop and says so."""
        is_held = self.is_held(claim)
        released = self.house.release(claim, charge=is_kill)
        assert (released is not None) == is_held
        if released is not None:
            self.gave_back(released, charge=is_kill)

    @rule(claim=claims)
    def succeed(self, claim: Claim) -> None:
        """A model, and its job's end: both or neither."""

        def finish(session: Session) -> None:
            repository.finish(session, claim, status="succeeded", now=self.house.now)
            session.add(self.model_of(claim))

        if self.must_be_held(claim, lambda: self.house.run(finish)):
            self.expected[claim.job_id].end("succeeded")
            self.expected[claim.job_id].models += 1

    @rule(claim=claims)
    def fail(self, claim: Claim) -> None:
        """An end that trying again would not mend."""
        end = {"status": "failed", "now": self.house.now, "error": {"message": "no"}}
        if self.must_be_held(claim, lambda: self.house.run(repository.finish, claim, **end)):
            self.expected[claim.job_id].end("failed")

    # -------------------------------------------------------------------------------------------------- clock and sweep

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE + 1]))
    def pass_time(self, seconds: float) -> None:
        """Workers may be stopped, killed or cut off meanwhile: none of them acts."""
        self.house.now += seconds

    @rule()
    def reconcile(self) -> None:
        """Any process gives back what was let run out."""
        expired = {job for job, expected in self.expected.items() if self.is_expired(expected)}
        released = self.house.reconcile()
        assert {one.job_id for one in released} == expired
        for one in released:
            self.gave_back(one, charge=True)

    def is_expired(self, expected: Expected) -> bool:
        """Whether a job's worker let its lease run out."""
        return expected.lease_until is not None and expected.lease_until < self.house.now

    def gave_back(self, released: Released, *, charge: bool) -> None:
        """What was said of it is what it came to."""
        expected = self.expected[released.job_id]
        expected.let_go(charge=charge)
        assert released.status == expected.status

    def is_held(self, claim: Claim) -> bool:
        """Whether a claim is the one that counts."""
        expected = self.expected[claim.job_id]
        return expected.status == "running" and expected.fence == claim.fence

    def must_be_held(self, claim: Claim, write: Any) -> bool:
        """Write under a claim. It must be refused exactly where the claim is an old one."""
        is_held = self.is_held(claim)
        try:
            write()
        except LostClaimError:
            assert not is_held
            return False
        assert is_held
        return True

    def model_of(self, claim: Claim) -> ModelRow:
        """What a worker would publish."""
        return ModelRow(
            id=f"mdl_{claim.job_id}_{claim.fence}",
            project_id="proj_a",
            job_id=claim.job_id,
            name="m",
            folder="f",
            description={},
            bytes=1,
            extra={},
            created_at=self.house.now,
        )

    # ------------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def accounts_agree(self) -> None:
        """Every job that was accepted is there, as it must be, and its story has no gap."""
        with self.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(JobRow))}
            models = dict(session.execute(select(ModelRow.job_id, func.count()).group_by(ModelRow.job_id)).all())
            told = dict(session.execute(select(EventRow.job_id, func.count()).group_by(EventRow.job_id)).all())
        for job, expected in self.expected.items():
            row = rows[job]
            found = Expected(
                status=row.status,
                wanted=row.wanted,
                fence=row.fence,
                lease_until=row.lease_until,
                attempts=row.attempts,
                has_progressed=row.has_progressed,
                ends=[row.status] if row.status in ENDED else [],
                models=models.get(job, 0),
            )
            assert found == replace(expected, ends=list(expected.ends))
            assert (row.owner is not None) == (row.status == "running")
            assert (row.finished_at is not None) == (row.status in ENDED)
            assert row.event_sequence == told.get(job, 0)


def test_no_story_loses_repeats_or_half_publishes_a_job(job_database: Database) -> None:
    stories = type("JobsHere", (Jobs,), {"database": job_database})
    run_state_machine_as_test(stories, settings=STORIES)
