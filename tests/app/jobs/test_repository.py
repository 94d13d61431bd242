"""The SQL of jobs, on SQLite and on PostgreSQL, by a clock of our own: who may take a job, keep it, end it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from app.db.session import Database
from app.db.tables import JobRow
from app.http.pagination import PageRequest
from app.jobs import repository
from app.jobs.repository import Claim, Event, LostClaimError, Released, status_event
from app.jobs.states import shown_status
from tests.app.jobs.house import CAP, LEASE, House


@pytest.fixture
def house(job_database: Database) -> Iterator[House]:
    house = House(job_database)
    yield house
    house.clear()


# --------------------------------------------------------------------------------------------------------------- claim


def test_the_oldest_job_is_claimed_first(house: House) -> None:
    jobs = [house.add() for _ in range(3)]
    assert [house.must_claim().job_id for _ in jobs] == jobs
    assert house.claim() is None


def test_only_a_queued_job_of_the_queue_and_the_kind_is_claimed(house: House) -> None:
    for status in ("running", "paused", "succeeded", "failed", "cancelled"):
        house.add(status=status)
    house.add(queue="gpu")
    house.add(kind="evaluation")
    wanted = house.add()
    assert house.must_claim() == Claim(wanted, 1)
    assert house.claim() is None


def test_a_slot_of_two_queues_takes_the_oldest_job_of_both(house: House) -> None:
    jobs = [house.add(queue=queue) for queue in ("gpu", "cpu", "gpu")]
    claims = [house.claim(queues=("gpu", "cpu")) for _ in jobs]
    assert [claim and claim.job_id for claim in claims] == jobs


def test_projects_take_turns_in_a_queue_of_one_slot(house: House) -> None:
    of_a = [house.add() for _ in range(4)]
    of_b = [house.add(project_id="proj_b") for _ in range(2)]
    claimed = []
    for _ in range(6):
        claim = house.must_claim()
        claimed.append(claim.job_id)
        with house.database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == claim.job_id).values(status="succeeded"))
        house.now += 1
    assert claimed == [of_a[0], of_b[0], of_a[1], of_b[1], *of_a[2:]]
    assert house.claim() is None


def test_the_project_with_the_fewest_running_in_the_queue_goes_first(house: House) -> None:
    of_a = [house.add() for _ in range(4)]
    assert [house.must_claim().job_id for _ in range(2)] == of_a[:2]
    house.add(project_id="proj_b", queue="gpu", status="running")  # another queue's do not count
    of_b = [house.add(project_id="proj_b") for _ in range(3)]
    assert [house.must_claim().job_id for _ in range(5)] == [*of_b[:2], of_a[2], of_b[2], of_a[3]]


def test_no_claim_comes_home_empty_while_any_project_has_a_job(house: House) -> None:
    jobs = [house.add(project_id=project) for project in ("proj_a", "proj_b", "proj_a", "proj_b")]
    assert sorted(claim.job_id for claim in _claims_at_once(house, 8)) == jobs


def test_a_claim_takes_the_next_fence_and_a_lease_by_the_given_clock(house: House) -> None:
    job = house.add(fence=4, has_progressed=True, events_offset=99)
    assert house.claim(owner="host:1:cpu") == Claim(job, 5)
    row = house.row(job)
    assert (row.status, row.owner, row.fence, row.lease_until) == ("running", "host:1:cpu", 5, house.now + LEASE)
    # The new run tells its story from its beginning, and has made no checkpoint yet.
    assert (row.has_progressed, row.events_offset) == (False, 0)
    assert house.events(job)[-1].data == {"reason": "claimed", "fence": 5}


def test_started_at_is_of_the_first_claim(house: House) -> None:
    job = house.add()
    claim = house.must_claim()
    house.release(claim)
    house.now += 500
    house.must_claim()
    assert house.row(job).started_at == 1_000.0


def test_one_of_eight_claims_wins_a_job(house: House) -> None:
    job = house.add()
    assert _claims_at_once(house, 8) == [Claim(job, 1)]
    assert house.reasons(job) == ["claimed"]


def test_eight_claims_at_once_take_eight_jobs(house: House) -> None:
    jobs = [house.add() for _ in range(8)]
    # On PostgreSQL a claim may find the row it chose taken, and then looks again later: as an idle worker does.
    taken = [claim for _ in range(8) for claim in _claims_at_once(house, 8)]
    assert sorted(taken, key=lambda claim: claim.job_id) == [Claim(job, 1) for job in jobs]


def _claims_at_once(house: House, threads: int) -> list[Claim]:
    together = threading.Barrier(threads)

    def claim(number: int) -> Claim | None:
        together.wait()
        return house.claim(owner=f"w{number}")

    with ThreadPoolExecutor(threads) as pool:
        return [claim for claim in pool.map(claim, range(threads)) if claim is not None]


# --------------------------------------------------------------------------------------------------------- lease, fence


def test_renewing_moves_the_lease_and_tells_what_is_wanted(house: House) -> None:
    job = house.add()
    claim = house.must_claim()
    house.now += 15
    assert house.renew(claim) is None
    assert house.row(job).lease_until == house.now + LEASE
    assert house.run(repository.wish, job, "pause")
    assert house.renew(claim) == "pause"


@pytest.mark.parametrize("how", ["claimed again", "ended", "queued again"])
def test_a_stale_claim_touches_nothing(house: House, how: str) -> None:
    job = house.add()
    stale = house.must_claim()
    if how == "ended":
        house.run(repository.finish, stale, status="succeeded", now=house.now)
    else:
        house.now += LEASE + 1
        house.reconcile()
        if how == "claimed again":
            house.must_claim()
    before, story = house.columns(job), len(house.events(job))

    with pytest.raises(LostClaimError):
        house.renew(stale)
    with pytest.raises(LostClaimError):
        house.run(repository.take_over, stale, [Event("message", "late", {})], progress={"step": 9}, events_offset=9)
    with pytest.raises(LostClaimError):
        house.run(repository.finish, stale, status="failed", now=house.now, error={"code": "late"})
    with pytest.raises(LostClaimError):
        house.checkpoint(stale, 7)
    with pytest.raises(LostClaimError):
        house.run(repository.get_claimed, stale)
    assert house.release(stale) is None

    assert house.columns(job) == before
    assert len(house.events(job)) == story
    assert house.run(repository.newest_checkpoints, job) == []


def test_a_lease_that_holds_is_left_alone(house: House) -> None:
    job = house.add()
    house.must_claim()
    house.now += LEASE
    assert house.reconcile() == []
    assert house.row(job).status == "running"


def test_a_lease_that_ran_out_queues_the_job_again_and_charges_an_attempt(house: House) -> None:
    job = house.add()
    house.must_claim()
    house.now += LEASE + 0.001
    assert house.reconcile() == [Released(job, "cpu", "queued")]
    row = house.row(job)
    assert (row.status, row.owner, row.lease_until, row.attempts, row.error) == ("queued", None, None, 1, None)
    assert row.finished_at is None
    assert house.reasons(job) == ["claimed", "requeued"]
    assert house.events(job)[-1].data == {"reason": "requeued", "cause": "lease_expired"}
    assert house.reconcile() == []


def test_the_leases_of_owners_known_to_be_dead_run_out_at_once(house: House) -> None:
    owners = ("host:1:cpu", "host:2:cpu", "hostile:1:cpu", "h%st:1:cpu")
    jobs = [house.add() for _ in owners]
    for owner in owners:
        house.claim(owner=owner)
    assert sorted(house.run(repository.running_owners, "host")) == ["host:1:cpu", "host:2:cpu"]
    house.run(repository.end_leases, ["host:1:cpu"])
    house.run(repository.end_leases, [])
    assert house.reconcile() == [Released(jobs[0], "cpu", "queued")]


@pytest.mark.parametrize("by", ["release", "reconcile"])
def test_no_attempt_is_charged_where_a_checkpoint_was_made(house: House, by: str) -> None:
    job = house.add()
    claim = house.must_claim()
    house.checkpoint(claim, 10)
    _end_badly(house, claim, by)
    assert (house.row(job).status, house.row(job).attempts) == ("queued", 0)
    # The next claim has to earn that again.
    _end_badly(house, house.must_claim(), by)
    assert (house.row(job).status, house.row(job).attempts) == ("queued", 1)


def test_a_graceful_release_is_never_charged(house: House) -> None:
    job = house.add()
    for _ in range(2 * CAP):
        assert house.release(house.must_claim(), charge=False) == Released(job, "cpu", "queued")
    assert house.row(job).attempts == 0


def test_a_job_that_was_paused_at_the_cap_is_failed_by_its_next_attempt_alone(house: House) -> None:
    job = house.add(attempts=CAP)
    assert house.release(house.must_claim(), charge=False) == Released(job, "cpu", "queued")
    claim = house.must_claim()
    house.checkpoint(claim, 5)
    assert house.release(claim) == Released(job, "cpu", "queued")
    assert house.release(house.must_claim()) == Released(job, "cpu", "failed")


@pytest.mark.parametrize("by", ["release", "reconcile"])
def test_the_last_attempt_fails_the_job_and_says_why(house: House, by: str) -> None:
    job = house.add()
    for attempt in range(1, CAP + 1):
        assert house.row(job).status == "queued"
        _end_badly(house, house.must_claim(), by)
        assert house.row(job).attempts == attempt
    row = house.row(job)
    assert (row.status, row.finished_at, row.owner, row.lease_until) == ("failed", house.now, None, None)
    assert row.error is not None
    assert set(row.error) == {"message", "type", "param", "code"}
    assert row.error["code"] == "too_many_attempts"
    assert ("its trainer died" if by == "release" else "its worker's lease ran out") in row.error["message"]
    cause = "trainer_died" if by == "release" else "lease_expired"
    assert house.events(job)[-1].data == {"reason": "failed", "cause": cause}
    assert house.claim() is None


# -------------------------------------------------------------------------------------------------------------- wishes


@pytest.mark.parametrize("by", ["release", "reconcile"])
@pytest.mark.parametrize(("wanted", "status"), [("cancel", "cancelled"), ("pause", "paused")])
@pytest.mark.parametrize("attempts", [0, CAP - 1])
def test_letting_go_carries_out_what_was_wanted(house: House, by: str, wanted: str, status: str, attempts: int) -> None:
    job = house.add(attempts=attempts)
    claim = house.must_claim()
    assert house.run(repository.wish, job, wanted)
    _end_badly(house, claim, by)
    row = house.row(job)
    assert (row.status, row.wanted, row.error, row.owner) == (status, None, None, None)
    assert row.finished_at == (house.now if status == "cancelled" else None)
    assert house.reasons(job)[-1] == status
    assert house.claim() is None


@pytest.mark.parametrize("wanted", ["cancel", "pause"])
def test_finishing_wins_over_what_was_wanted(house: House, wanted: str) -> None:
    job = house.add()
    claim = house.must_claim()
    assert house.run(repository.wish, job, wanted)
    house.run(repository.finish, claim, status="succeeded", now=house.now, model_id="mdl_1")
    row = house.row(job)
    assert (row.status, row.wanted, row.model_id, row.finished_at) == ("succeeded", None, "mdl_1", house.now)
    assert (row.owner, row.lease_until) == (None, None)


# What each wish does to a job of each status: the status and the wish it has afterwards, or None where it is refused.
_WISHES: dict[str, dict[str, tuple[str, str | None] | None]] = {
    "queued": {"cancel": ("cancelled", None), "pause": ("paused", None), "again": None, "tell": None},
    "paused": {"cancel": ("cancelled", None), "pause": None, "again": ("queued", None), "tell": None},
    "running": {"cancel": None, "pause": None, "again": None, "tell": ("running", "cancel")},
    "succeeded": {"cancel": None, "pause": None, "again": None, "tell": None},
    "failed": {"cancel": None, "pause": None, "again": None, "tell": None},
    "cancelled": {"cancel": None, "pause": None, "again": None, "tell": None},
}


def test_each_wish_changes_the_jobs_it_may_and_no_other(house: House) -> None:
    for status, expectations in _WISHES.items():
        for wish, expected in expectations.items():
            job = house.add(status=status)
            done = {
                "cancel": lambda job: house.run(repository.end_waiting, job, now=house.now),
                "pause": lambda job: house.run(repository.pause_waiting, job),
                "again": lambda job: house.run(repository.queue_again, job, now=house.now),
                "tell": lambda job: house.run(repository.wish, job, "cancel"),
            }[wish](job)
            row = house.row(job)
            assert done == (expected is not None), (status, wish)
            assert (row.status, row.wanted) == (expected or (status, None)), (status, wish)
            assert (row.finished_at is not None) == (expected == ("cancelled", None)), (status, wish)


def test_a_pause_can_be_withdrawn_or_turned_into_a_cancel_but_a_cancel_stands(house: House) -> None:
    job = house.add()
    claim = house.must_claim()
    assert house.run(repository.wish, job, "pause")
    assert house.run(repository.wish, job, None)
    assert house.renew(claim) is None
    assert house.run(repository.wish, job, "pause")
    assert house.run(repository.wish, job, "cancel")
    for other in ("pause", None, "cancel"):
        assert not house.run(repository.wish, job, other)
    assert house.renew(claim) == "cancel"


# ----------------------------------------------------------------------------------------------------- events, metrics


def test_events_of_four_writers_are_numbered_without_gaps_and_appear_in_order(house: House) -> None:
    job, batches = house.add(), 20
    done = threading.Event()
    seen: list[list[int]] = []

    def write(number: int) -> None:
        for batch in range(batches):
            events = [status_event("x", f"{number}.{batch}.{i}") for i in range(1 + batch % 3)]
            house.run(repository.append_events, job, events)

    def watch() -> None:
        while not done.is_set():
            seen.append([event.sequence for event in house.events(job)])
            time.sleep(0.005)

    reader = threading.Thread(target=watch)
    reader.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    done.set()
    reader.join()
    total = 4 * sum(1 + batch % 3 for batch in range(batches))
    for sequences in [*seen, [event.sequence for event in house.events(job)]]:
        # A reader who goes on after the last number it saw misses nothing: no smaller number appears later.
        assert sequences == list(range(1, len(sequences) + 1))
    assert len(house.events(job)) == total == house.row(job).event_sequence


def test_events_that_are_rolled_back_leave_no_gap(house: House) -> None:
    job = house.add()
    house.run(repository.append_events, job, [status_event("first", "1")])
    with pytest.raises(ZeroDivisionError), house.database.write() as session:
        repository.append_events(session, job, [status_event("never", "?")])
        raise ZeroDivisionError
    house.run(repository.append_events, job, [status_event("second", "2")])
    assert [(event.sequence, event.data["reason"]) for event in house.events(job)] == [(1, "first"), (2, "second")]


def test_a_repeated_step_overwrites_its_metric(house: House) -> None:
    job = house.add()

    def put(*values: tuple[str, int, float]) -> None:
        rows = [{"name": name, "step": step, "value": value, "created_at": house.now} for name, step, value in values]
        house.run(repository.put_metrics, job, rows)

    put(("train/loss", 1, 0.9), ("train/loss", 2, 0.8), ("train/grad_norm", 1, 3.0))
    house.now += 5
    put(("train/loss", 2, 0.7), ("train/loss", 2, 0.6), ("train/loss", 3, 0.5))
    put()
    assert _metrics(house, job) == {
        ("train/grad_norm", 1): (3.0, 1_000.0),
        ("train/loss", 1): (0.9, 1_000.0),
        ("train/loss", 2): (0.6, 1_005.0),
        ("train/loss", 3): (0.5, 1_005.0),
    }


def test_the_speed_of_a_base_is_the_median_of_its_last_trainings_on_a_queue(house: House) -> None:
    def trained(*speeds: float, model: str = "swift", tuning: str = "full", **columns: Any) -> None:
        spec = {"model": model, "tuning": {"type": tuning}}
        job = house.add(**{"status": "succeeded", "spec": spec, **columns})
        for name, values in (("train/tokens_per_second", speeds), ("train/rows_per_second", [1.0])):
            rows = [
                {"name": name, "step": step, "value": value, "created_at": 0.0} for step, value in enumerate(values)
            ]
            house.run(repository.put_metrics, job, rows)

    def speed(queue: str = "cpu", model: str = "swift") -> Any:
        return house.run(repository.tokens_per_second, queue, model)

    trained(9_000.0, status="failed")
    trained(9_000.0, tuning="frozen")
    trained(9_000.0, kind="dry_run")
    trained(9_000.0, model="other")
    assert speed() is None
    trained(50.0)
    for _ in range(repository.SPEED_JOBS - 1):
        trained(100.0, 200.0, 300.0, project_id="proj_b")
    trained(800.0, queue="gpu")
    assert (speed(), speed("gpu"), speed(model="other"), speed("gpu", "other")) == (200, 800, 9_000, None)
    for _ in range(repository.SPEED_JOBS):
        trained(400.0)  # the machine became faster
    assert speed() == 400


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_of_metrics_go_series_by_series_and_lose_none(house: House, order: Any) -> None:
    job, other = house.add(), house.add()
    keys = [(name, step) for name in ("train/loss", "train/loss/focal", "validation/loss") for step in (1, 2, 10)]
    for owner in (job, other):
        rows = [{"name": name, "step": step, "value": 0.0, "created_at": 0.0} for name, step in keys]
        house.run(repository.put_metrics, owner, rows)
    found: list[tuple[str, int]] = []
    has_more = True
    while has_more:
        with house.database.read() as session:
            page, has_more = repository.list_metrics(
                session, job, PageRequest(limit=2, order=order), name=None, after=found[-1] if found else None
            )
        found += [(row.name, row.step) for row in page]
    # How a database sorts '/' against letters is its own; each series in the order of its steps is ours.
    assert sorted(found) == sorted(keys)
    for name in {name for name, _ in keys}:
        steps = [step for series, step in found if series == name]
        assert steps == ([1, 2, 10] if order == "asc" else [10, 2, 1])
        place = [series for series, _ in found].index(name)
        assert [series for series, _ in found][place : place + 3] == [name] * 3


def _metrics(house: House, job: str) -> dict[tuple[str, int], tuple[float, float]]:
    with house.database.read() as session:
        rows, _ = repository.list_metrics(session, job, PageRequest(limit=100, order="asc"), name=None, after=None)
    return {(row.name, row.step): (row.value, row.created_at) for row in rows}


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_list_holds_one_projects_jobs(house: House) -> None:
    mine, theirs = house.add(), house.add(project_id="proj_b")
    assert house.listed() == [mine]
    assert house.listed(project="proj_b") == [theirs]


def test_status_filters_by_what_is_shown(house: House) -> None:
    jobs = {
        shown_status(status, wanted): house.add(status=status, wanted=wanted)
        for status, wanted in [
            ("queued", None),
            ("running", None),
            ("running", "cancel"),
            ("running", "pause"),
            ("paused", None),
            ("succeeded", None),
        ]
    }
    assert set(jobs) == {"queued", "running", "cancelling", "pausing", "paused", "succeeded"}
    for shown, job in jobs.items():
        assert house.listed(status=shown) == [job]
    assert house.listed(status="failed") == []


def test_filters_narrow_a_list_together(house: House) -> None:
    wanted = house.add(dataset_id="ds_9", kind="evaluation", extra={"team": "nlp", "stage": "prod"})
    house.add(dataset_id="ds_9", kind="evaluation", extra={"team": "nlp"})
    house.add(dataset_id="ds_9", extra={"team": "nlp", "stage": "prod"})
    house.add(kind="evaluation", extra={"team": "vision", "stage": "prod"})
    assert house.listed(dataset_id="ds_9", kind="evaluation", metadata={"team": "nlp", "stage": "prod"}) == [wanted]
    assert len(house.listed(metadata={"team": "nlp"})) == 3
    assert house.listed(metadata={"nobody": "has it"}) == []


def test_any_metadata_key_can_be_filtered_by(house: House) -> None:
    for key in ("a.b", "a b", "größe", "团队", "it's", "[0]", "$", "100%", 'a"b', "a\\b", "a'; DROP TABLE jobs"):
        wanted = house.add(extra={key: "yes", "other": "no"})
        house.add(extra={key: "no", "other": "yes"})
        assert house.listed(metadata={key: "yes"}) == [wanted], key


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_paging_neither_skips_nor_repeats_while_jobs_are_added(house: House, order: Any) -> None:
    before = [house.add() for _ in range(7)]
    found: list[str] = []
    added: list[str] = []
    has_more = True
    while has_more:
        page = PageRequest(limit=2, order=order, after=found[-1] if found else None)
        with house.database.read() as session:
            rows, has_more = repository.list_jobs(session, "proj_a", page, filters={}, metadata={})
        found += [row.id for row in rows]
        if len(added) < 3:
            added.append(house.add())
    assert found == (before + added if order == "asc" else before[::-1])


@pytest.mark.parametrize("status", ["queued", "running", "paused", "succeeded", "failed", "cancelled"])
def test_a_checkpoint_is_published_once_unless_in_vain_and_kept_until_then(house: House, status: str) -> None:
    house.add()
    claim = house.must_claim()
    for step in (1, 2, 3):
        house.checkpoint(claim, step)
    *_, oldest = house.run(repository.newest_checkpoints, claim.job_id)
    publication = {"kind": "publish", "queue": "short", "parent_id": claim.job_id, "checkpoint_id": oldest.id}
    first = house.add(**publication, status=status)
    assert house.run(repository.find_checkpoint_for_update, claim.job_id, oldest.id).id == oldest.id
    assert house.run(repository.find_checkpoint_for_update, first, oldest.id) is None
    found = house.run(repository.find_publication, claim.job_id, oldest.id)
    if status in ("failed", "cancelled"):
        assert found is None
        house.add(**publication)
    else:
        assert found.id == first
        with pytest.raises(IntegrityError):
            house.add(**publication)
    forgotten = house.run(repository.forget_checkpoints, claim.job_id, keep=1)
    assert [row.step for row in forgotten] == ([2, 1] if status == "succeeded" else [2])


def _end_badly(house: House, claim: Claim, by: str) -> None:
    if by == "release":
        assert house.release(claim) is not None
    else:
        house.now += LEASE + 1
        assert len(house.reconcile()) == 1
