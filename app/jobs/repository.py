"""All SQL on jobs, their events, metrics and checkpoints, and on workers. The state machine lives in the WHERE clauses.

A worker's write names the fence of its claim and touches no row once another claim was made. Lease times are the
database's own clock, given as `now`.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.tables import CheckpointRow, EventRow, JobMetadataRow, JobRow, MetricRow, ProjectRow, WorkerRow
from app.http.metadata import join_metadata
from app.http.pagination import PageRequest, fetch_page, fetch_page_of, id_after
from app.jobs.setups import models_of, setup_of
from app.jobs.states import ENDED, LIVE, Cause, Wish

Now = ColumnElement[float] | float

# Not the id alone, which says the same: by that PostgreSQL would walk the table from its oldest row, which has ended.
_AGE = (JobRow.created_at, JobRow.id)
_NEWEST_FIRST = (CheckpointRow.step.desc(), CheckpointRow.id.desc())
_BEING_PUBLISHED = select(JobRow.checkpoint_id).where(JobRow.checkpoint_id.is_not(None), JobRow.status.in_(LIVE))

SPEED_JOBS = 10  # so many trainings say how fast the next will be
_SPEED_LOOK_BACK = 200  # the newest of all, among which they are looked for


class LostClaimError(Exception):
    """The job was claimed again, or ended: whoever holds the old fence must stop and write nothing."""


@dataclass(frozen=True)
class Claim:
    """A job taken by a worker."""

    job_id: str
    fence: int


@dataclass(frozen=True)
class Event:
    """One event to append."""

    type: str
    message: str
    data: dict[str, Any]
    level: str = "info"
    created_at: float | None = None


@dataclass(frozen=True)
class Why:
    """Why a job leaves a worker's hands."""

    cause: Cause  # for programs
    words: str  # for people


@dataclass(frozen=True)
class Released:
    """A job that left a worker's hands without an end of its own."""

    job_id: str
    queue: str
    status: str


# ------------------------------------------------------------------------------------------------ claim, beat, release


def claim_next(
    session: Session, *, queues: Sequence[str], kinds: Sequence[str], owner: str, lease: float, now: Now
) -> Claim | None:
    """Take the next eligible job of these queues; None when there is none.

    Projects take turns: it is the oldest job of the project that has the fewest running in its queue, and among those
    of the one that was longest without a claim.
    """
    is_eligible = (JobRow.status == "queued", JobRow.wanted.is_(None), JobRow.kind.in_(kinds))
    for queue, project_id in _turns(session, queues, is_eligible):
        # Of one that others claim just now the next in age: who comes home empty has seen every project.
        oldest = _oldest(queue, project_id, is_eligible).with_for_update(skip_locked=True).scalar_subquery()
        row = session.execute(
            update(JobRow)
            .where(JobRow.id == oldest)
            .values(
                status="running",
                fence=JobRow.fence + 1,
                owner=owner,
                lease_until=now + lease,
                has_progressed=False,
                events_offset=0,
                started_at=func.coalesce(JobRow.started_at, now),
            )
            .returning(JobRow.id, JobRow.fence)
        ).first()
        if row is not None:
            claim = Claim(row.id, row.fence)
            append_events(session, claim.job_id, [status_event("claimed", f"claimed by {owner}", fence=claim.fence)])
            # Not waited for: who holds the project may wait for this job, and then its turn comes a little early.
            project = select(ProjectRow.id).where(ProjectRow.id == project_id).with_for_update(skip_locked=True)
            session.execute(update(ProjectRow).where(ProjectRow.id == project.scalar_subquery()).values(claimed_at=now))
            return claim
    return None


def _turns(
    session: Session, queues: Sequence[str], is_eligible: Sequence[ColumnElement[bool]]
) -> list[tuple[str, str]]:
    """Queues and projects that have an eligible job, the one whose turn it is first."""
    turns: list[tuple[int, float, str, str, str]] = []
    for queue in queues:
        running = select(func.count()).where(
            JobRow.status == "running", JobRow.queue == queue, JobRow.project_id == ProjectRow.id
        )
        first = _oldest(queue, ProjectRow.id, is_eligible)
        projects = select(
            running.correlate(ProjectRow).scalar_subquery().label("running"),
            func.coalesce(ProjectRow.claimed_at, 0.0).label("claimed_at"),
            first.correlate(ProjectRow).scalar_subquery().label("first"),
            ProjectRow.id.label("project_id"),
        ).subquery()
        waiting = session.execute(select(projects).where(projects.c.first.is_not(None)))
        turns += [(row.running, row.claimed_at, row.first, queue, row.project_id) for row in waiting]
    return [(queue, project_id) for *_, queue, project_id in sorted(turns)]


def _oldest(
    queue: str, project_id: str | InstrumentedAttribute[str], is_eligible: Sequence[ColumnElement[bool]]
) -> Select[str]:
    return (
        select(JobRow.id)
        .where(JobRow.queue == queue, JobRow.project_id == project_id, *is_eligible)
        .order_by(*_AGE)
        .limit(1)
    )


def renew_lease(session: Session, claim: Claim, *, lease: float, now: Now) -> Wish | None:
    """Keep a claim for another lease, and hear what is wanted of the job. Raises LostClaimError."""
    row = session.execute(
        update(JobRow).where(*_held(claim)).values(lease_until=now + lease).returning(JobRow.wanted)
    ).first()
    if row is None:
        raise LostClaimError(claim.job_id)
    wanted: Wish | None = row.wanted
    return wanted


def release(session: Session, claim: Claim, *, charge: bool, cap: int, why: Why, now: Now) -> Released | None:
    """Give a job back after its trainer died (charge) or was asked to stop; None when the claim was lost."""
    released = _let_go(session, _held(claim), charge=charge, cap=cap, why=why, now=now)
    return released[0] if released else None


def reconcile(session: Session, *, cap: int, now: Now) -> list[Released]:
    """Give back every job whose worker let its lease run out."""
    expired = (JobRow.status == "running", JobRow.lease_until < now)
    why = Why("lease_expired", "its worker's lease ran out")
    return _let_go(session, expired, charge=True, cap=cap, why=why, now=now)


def release_all(session: Session, *, cap: int, why: Why, now: Now) -> list[Released]:
    """Give back every running job, uncharged: none of their workers is here."""
    return _let_go(session, [JobRow.status == "running"], charge=False, cap=cap, why=why, now=now)


def running_claims(session: Session) -> set[Claim]:
    """Every claim that is held."""
    return {
        Claim(row.id, row.fence)
        for row in session.execute(select(JobRow.id, JobRow.fence).where(JobRow.status == "running"))
    }


def running_owners(session: Session, host: str) -> list[str]:
    """Who on a host holds a job: "host:pid:slot" each."""
    query = select(JobRow.owner).where(JobRow.status == "running", JobRow.owner.startswith(f"{host}:", autoescape=True))
    return [owner for owner in session.scalars(query) if owner is not None]


def end_leases(session: Session, owners: Sequence[str]) -> None:
    """Let the leases of owners that are known to be dead run out now."""
    session.execute(update(JobRow).where(JobRow.status == "running", JobRow.owner.in_(owners)).values(lease_until=0.0))


def see_worker(session: Session, owner: str, queues: Sequence[str], *, now: Now) -> None:
    """Note that a worker lives, and which queues it claims from."""
    values = {"queues": list(queues), "seen_at": now}
    known = update(WorkerRow).where(WorkerRow.owner == owner).values(**values).returning(WorkerRow.owner)
    if session.execute(known).first() is None:
        session.execute(insert(WorkerRow).values(owner=owner, **values))


def forget_worker(session: Session, owner: str) -> None:
    """Strike a worker that ends."""
    session.execute(delete(WorkerRow).where(WorkerRow.owner == owner))


def forget_absent_workers(session: Session, *, seen_before: Now) -> None:
    """Strike those that ended without a word."""
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < seen_before))


def served_queues(session: Session, *, seen_since: Now) -> set[str]:
    """The queues that living workers claim from."""
    return {queue for queues in worker_queues(session, seen_since=seen_since) for queue in queues}


def worker_queues(session: Session, *, seen_since: Now) -> list[list[str]]:
    """Of each living worker, the queues it claims from."""
    return list(session.scalars(select(WorkerRow.queues).where(WorkerRow.seen_at >= seen_since)))


def _let_go(
    session: Session, where: Iterable[ColumnElement[bool]], *, charge: bool, cap: int, why: Why, now: Now
) -> list[Released]:
    """RELEASE and RECONCILE are this one statement: charge an attempt if due, then carry out what was wanted."""
    due = case((JobRow.has_progressed.is_(True), 0), else_=1) if charge else literal(0)
    attempts = JobRow.attempts + due
    is_spent = and_(due > 0, attempts >= cap)  # one at the cap may have been paused then: it goes on
    error = {
        "message": f"{cap} attempts ended without a new checkpoint; the last one because {why.words}. "
        "See the job's events.",
        "type": "job_error",
        "param": None,
        "code": "too_many_attempts",
    }
    ends = or_(JobRow.wanted == "cancel", JobRow.wanted.is_(None) & is_spent)
    rows = session.execute(
        update(JobRow)
        .where(*where)
        .values(
            attempts=attempts,
            status=case(
                (JobRow.wanted == "cancel", "cancelled"),
                (JobRow.wanted == "pause", "paused"),
                (is_spent, "failed"),
                else_="queued",
            ),
            error=case((JobRow.wanted.is_(None) & is_spent, literal(error, JobRow.error.type)), else_=null()),
            finished_at=case((ends, now), else_=null()),
            queued_at=now,
            owner=None,
            lease_until=None,
            wanted=None,
        )
        .returning(JobRow.id, JobRow.queue, JobRow.status)
    ).all()
    released = [Released(row.id, row.queue, row.status) for row in rows]
    for one in released:
        word = "requeued" if one.status == "queued" else one.status
        append_events(session, one.job_id, [status_event(word, f"{word}: {why.words}", cause=why.cause)])
    return released


def finish(session: Session, claim: Claim, *, status: str, now: Now, **values: Any) -> None:
    """End a running job. It wins over what was wanted. Raises LostClaimError, and then the caller's work is void."""
    row = session.execute(
        update(JobRow)
        .where(*_held(claim))
        .values(status=status, finished_at=now, owner=None, lease_until=None, wanted=None, **values)
        .returning(JobRow.id)
    ).first()
    if row is None:
        raise LostClaimError(claim.job_id)


def take_over(session: Session, claim: Claim, events: Sequence[Event], **values: Any) -> Wish | None:
    """Write a running job's own columns (progress, offset, …) and events, and hear what is wanted of it.

    Raises LostClaimError.
    """
    row = session.execute(update(JobRow).where(*_held(claim)).values(**values).returning(JobRow.wanted)).first()
    if row is None:
        raise LostClaimError(claim.job_id)
    append_events(session, claim.job_id, events)
    wanted: Wish | None = row.wanted
    return wanted


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.status == "running"


# ------------------------------------------------------------------------------------------------------------- wishes


def end_waiting(session: Session, job_id: str, *, now: Now) -> bool:
    """Cancel a job that no worker holds."""
    return _change(session, job_id, ("queued", "paused"), status="cancelled", wanted=None, finished_at=now)


def pause_waiting(session: Session, job_id: str) -> bool:
    """Pause a job that no worker holds yet."""
    return _change(session, job_id, ("queued",), status="paused")


def queue_again(session: Session, job_id: str, *, now: Now) -> bool:
    """Let a paused job wait for a worker again."""
    return _change(session, job_id, ("paused",), status="queued", queued_at=now)


def wish(session: Session, job_id: str, wanted: Wish | None) -> bool:
    """Tell the worker of a running job what is wanted; a wish to cancel is never overwritten."""
    row = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status == "running", or_(JobRow.wanted.is_(None), JobRow.wanted == "pause"))
        .values(wanted=wanted)
        .returning(JobRow.id)
    ).first()
    return row is not None


def _change(session: Session, job_id: str, statuses: Sequence[str], **values: Any) -> bool:
    row = session.execute(
        update(JobRow).where(JobRow.id == job_id, JobRow.status.in_(statuses)).values(**values).returning(JobRow.id)
    ).first()
    return row is not None


# ------------------------------------------------------------------------------------------------------------ reading


def find(session: Session, project_id: str, job_id: str) -> JobRow | None:
    """A project's job."""
    return session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.project_id == project_id))


def find_for_update(session: Session, project_id: str, job_id: str) -> JobRow | None:
    """The same, locked: no worker claims or releases it before this transaction ends."""
    return session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.project_id == project_id).with_for_update())


def get_claimed(session: Session, claim: Claim) -> JobRow:
    """The job behind a claim. Raises LostClaimError."""
    row = session.scalar(select(JobRow).where(*_held(claim)))
    if row is None:
        raise LostClaimError(claim.job_id)
    return row


def list_jobs(
    session: Session, project_id: str, page: PageRequest, *, filters: Mapping[str, str], metadata: Mapping[str, str]
) -> tuple[list[JobRow], bool]:
    """One page of a project's jobs. filters: column → value, `kind` among them, and `status` as it is shown."""
    query: Select[Any] = select(JobRow).where(JobRow.project_id == project_id)
    for name, value in filters.items():
        is_status = name == "status"
        query = _where_status(query, value) if is_status else query.where(getattr(JobRow, name) == value)
    scope = {"project_id": project_id, "kind": filters["kind"]} if "kind" in filters else {"project_id": project_id}
    query, key = join_metadata(query, JobRow, JobMetadataRow, metadata, **scope)
    return fetch_page_of(session, query, JobRow, key, page, id_after(page, "job"))


def live_with_dataset(session: Session, project_id: str, dataset_id: str) -> list[str]:
    """The jobs that still need a dataset, the oldest first."""
    is_live = (JobRow.project_id == project_id, JobRow.status.in_(LIVE))
    return list(session.scalars(select(JobRow.id).where(*is_live, JobRow.dataset_id == dataset_id).order_by(JobRow.id)))


def live_with_model(session: Session, project_id: str, model_id: str) -> list[str]:
    """The jobs that still need a model, to train it further or to learn from it; the oldest first."""
    is_live = (JobRow.project_id == project_id, JobRow.status.in_(LIVE))
    # The text of a spec may hold the id in other places, too: in its metadata, say.
    holds_id = cast(JobRow.spec, Text).contains(model_id, autoescape=True)
    rows = session.scalars(select(JobRow).where(*is_live, holds_id).order_by(JobRow.id))
    return [row.id for row in rows if model_id in models_of(setup_of(row)).values()]


def _where_status(query: Select[Any], shown: str) -> Select[Any]:
    wishes = {"cancelling": "cancel", "pausing": "pause"}
    if shown in wishes:
        return query.where(JobRow.status == "running", JobRow.wanted == wishes[shown])
    query = query.where(JobRow.status == shown)
    return query.where(JobRow.wanted.is_(None)) if shown == "running" else query


# --------------------------------------------------------------------------------------- events, metrics, checkpoints


def status_event(reason: str, message: str, **data: Any) -> Event:
    """An event of type status."""
    return Event("status", message, {"reason": reason, **data})


def seconds_run(session: Session, job_id: str) -> float:
    """How long workers have held a job under the claims that are over."""
    told = select(EventRow.data["reason"].as_string(), EventRow.created_at)
    query = told.where(EventRow.job_id == job_id, EventRow.type == "status").order_by(EventRow.sequence)
    seconds, claimed_at = 0.0, None
    for reason, at in session.execute(query):
        if reason == "claimed":
            claimed_at = at
        elif reason in ("requeued", "paused") and claimed_at is not None:
            seconds += at - claimed_at
            claimed_at = None
    return seconds


def append_events(session: Session, job_id: str, events: Sequence[Event]) -> None:
    """Append events. Their sequence comes from the job's row, in this transaction: no gap is filled late."""
    if not events:
        return
    last = session.scalar(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(event_sequence=JobRow.event_sequence + len(events))
        .returning(JobRow.event_sequence)
    )
    assert last is not None, f"job {job_id} is gone"
    for sequence, event in enumerate(events, last - len(events) + 1):
        session.add(
            EventRow(
                job_id=job_id,
                sequence=sequence,
                level=event.level,
                type=event.type,
                message=event.message,
                data=event.data,
                created_at=event.created_at or time.time(),
            )
        )
    session.flush()


def event_sequences(session: Session, job_ids: Collection[str]) -> dict[str, int]:
    """The sequence of the last event of each job, in whatever project."""
    query = select(JobRow.id, JobRow.event_sequence).where(JobRow.id.in_(job_ids))
    return {row.id: row.event_sequence for row in session.execute(query)}


def list_events(session: Session, job_id: str, page: PageRequest, after: int | None) -> tuple[list[EventRow], bool]:
    """One page of a job's events; `after` is the sequence of the last one seen."""
    return fetch_page(session, select(EventRow).where(EventRow.job_id == job_id), EventRow.sequence, page, after)


def put_metrics(session: Session, job_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metric values; a step that is repeated after a resume overwrites itself."""
    if not rows:
        return
    newest = {(row["name"], row["step"]): {"job_id": job_id, **row} for row in rows}
    upsert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = upsert(MetricRow).values(list(newest.values()))
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "name", "step"],
            set_={"value": statement.excluded.value, "created_at": statement.excluded.created_at},
        )
    )


def list_metrics(
    session: Session, job_id: str, page: PageRequest, *, name: str | None, after: tuple[str, int] | None
) -> tuple[list[MetricRow], bool]:
    """One page of a job's metrics, series by series, each in the order of its steps."""
    query = select(MetricRow).where(MetricRow.job_id == job_id)
    if name is not None:
        query = query.where(MetricRow.name == name)
    key, is_ascending = tuple_(MetricRow.name, MetricRow.step), page.order == "asc"
    if after is not None:
        query = query.where(key > after if is_ascending else key < after)
    columns = (MetricRow.name, MetricRow.step)
    query = query.order_by(*(column.asc() if is_ascending else column.desc() for column in columns))
    rows = list(session.scalars(query.limit(page.limit + 1)))
    return rows[: page.limit], len(rows) > page.limit


def tokens_per_second(session: Session, queue: str, model: str) -> float | None:
    """The median speed of the last trainings of a base model, whosever they are; None where none has succeeded."""
    done = (JobRow.status == "succeeded", JobRow.queue == queue, JobRow.kind == "training")
    by_age = (column.desc() for column in _AGE)
    newest = select(JobRow.id, JobRow.spec).where(*done).order_by(*by_age).limit(_SPEED_LOOK_BACK).subquery()
    alike = (
        newest.c.spec["model"].as_string() == model,
        newest.c.spec["tuning", "type"].as_string() == "full",  # a frozen encoder reads no token while its head trains
    )
    last = select(newest.c.id).where(*alike).order_by(newest.c.id.desc()).limit(SPEED_JOBS)
    is_speed = MetricRow.name == "train/tokens_per_second"
    values = session.scalars(select(MetricRow.value).where(is_speed, MetricRow.job_id.in_(last))).all()
    return median(values) if values else None


def add_checkpoint(session: Session, claim: Claim, row: CheckpointRow, events: Sequence[Event]) -> None:
    """Record a checkpoint whose files are in the store. Raises LostClaimError."""
    take_over(session, claim, events, has_progressed=True)
    session.add(row)
    session.flush()


def newest_checkpoints(session: Session, job_id: str) -> list[CheckpointRow]:
    """A job's checkpoints, the highest step first."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id)
    return list(session.scalars(query.order_by(*_NEWEST_FIRST)))


def checkpoints_of_ended(session: Session, before: float) -> list[CheckpointRow]:
    """What all jobs that ended before a time, in unix seconds, may forget. Job by job."""
    has_ended = (JobRow.status.in_(ENDED), JobRow.finished_at < before)
    query = select(CheckpointRow).join(JobRow, JobRow.id == CheckpointRow.job_id).where(*has_ended)
    query = query.where(CheckpointRow.id.not_in(_BEING_PUBLISHED))
    return list(session.scalars(query.order_by(CheckpointRow.job_id, *_NEWEST_FIRST)))


def outputs_of_ended(session: Session, before: float) -> dict[str, str]:
    """The folders of files that jobs left which ended before a time, in unix seconds; by job."""
    has_files = (JobRow.status.in_(ENDED), JobRow.finished_at < before, JobRow.output.is_not(None))
    rows = session.execute(select(JobRow.id, JobRow.output).where(*has_files).order_by(JobRow.id))
    return {job_id: folder for job_id, folder in rows if folder is not None}


def forget_output(session: Session, job_id: str) -> None:
    """Forget the files of a job, which are the caller's to remove."""
    session.execute(update(JobRow).where(JobRow.id == job_id).values(output=None))


def list_checkpoints(session: Session, job_id: str, page: PageRequest) -> tuple[list[CheckpointRow], bool]:
    """One page of a job's checkpoints."""
    return fetch_page(
        session,
        select(CheckpointRow).where(CheckpointRow.job_id == job_id),
        CheckpointRow.id,
        page,
        id_after(page, "ckpt"),
    )


def get_checkpoint(session: Session, checkpoint_id: str) -> CheckpointRow:
    """The checkpoint of a live publish job, which keeps it."""
    return session.get_one(CheckpointRow, checkpoint_id)


def find_checkpoint_for_update(session: Session, job_id: str, checkpoint_id: str) -> CheckpointRow | None:
    """A job's checkpoint, locked: it is not forgotten before this transaction ends."""
    query = select(CheckpointRow).where(CheckpointRow.id == checkpoint_id, CheckpointRow.job_id == job_id)
    return session.scalar(query.with_for_update())


def find_publication(session: Session, job_id: str, checkpoint_id: str) -> JobRow | None:
    """The job that publishes a checkpoint, or has published it."""
    return session.scalar(
        select(JobRow).where(
            JobRow.parent_id == job_id,
            JobRow.checkpoint_id == checkpoint_id,
            JobRow.status.not_in(("failed", "cancelled")),
        )
    )


def forget_checkpoints(session: Session, job_id: str, *, keep: int) -> list[CheckpointRow]:
    """Forget all but a job's newest checkpoints and those being published; their files are the caller's to remove."""
    query = select(CheckpointRow).where(CheckpointRow.job_id == job_id).order_by(*_NEWEST_FIRST)
    # Locked before we look who publishes: who began to since then waits, and finds them gone.
    rows = session.scalars(query.offset(keep).with_for_update()).all()
    being_published = set(session.scalars(_BEING_PUBLISHED.where(JobRow.parent_id == job_id)))
    old = [row for row in rows if row.id not in being_published]
    session.execute(delete(CheckpointRow).where(CheckpointRow.id.in_([row.id for row in old])))
    return old
