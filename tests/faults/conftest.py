"""Installations for the fault suite, and its report.

A test marked `row` belongs to a row of the fault table. `make test` runs it once, where it is quick; `make faults`
(--faults) as often as the row says, each time with another seed, on SQLite and PostgreSQL in turn, and prints what
came of it.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.faults.site import ROWS, Record, Site, Watch, digest_of_weights
from tests.service import RunningService, all_items, running, upload

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"
PROPERTY = "fault"  # by which a record travels with its test's report, from one process to another too


# ---------------------------------------------------------------------------------------------------- seeds and report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run each row as often as it says, and report")
    parser.addoption("--most-runs", type=int, default=100, help="with --faults: of each row no more than so many")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        row = metafunc.definition.get_closest_marker("row")
        assert row is not None, f"{metafunc.function.__name__} must say which row of the table it is"
        config = metafunc.config
        most = config.getoption("--most-runs") if config.getoption("--faults", default=False) else 1
        metafunc.parametrize("seed", range(min(most, row.kwargs.get("runs", 1))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    record: Record | None = getattr(item, "funcargs", {}).get("record")
    if record is not None:
        record.failed |= report.failed
        if report.when == "teardown":
            report.user_properties.append((PROPERTY, asdict(record)))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--faults", default=False):
        return
    ended = [report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "when")]
    told = [value for report in ended for name, value in report.user_properties if name == PROPERTY]
    if not told:
        return
    records = sorted((Record(**one) for one in told), key=lambda record: (record.row, record.seed))
    names = dict.fromkeys(record.row for record in records)
    rows = [summary(name, [record for record in records if record.row == name]) for name in names]
    lines = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    terminalreporter.section("faults")
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        terminalreporter.write_line("  ".join(padded).rstrip())
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"rows": rows, "runs": [asdict(record) for record in records]}, indent=1) + "\n")
    terminalreporter.write_line(f"\nIn full: {RESULTS}")


def summary(name: str, records: list[Record]) -> dict[str, Any]:
    """A row of the report. Recovery is in seconds."""
    times = [seconds for record in records for seconds in record.recoveries]
    p50, p99 = np.percentile(times, [50, 99]).round(1).tolist() if times else ("", "")
    return {
        "row": name,
        "runs": len(records),
        "seeds": len({record.seed for record in records}),
        "failed": sum(record.failed for record in records),
        "lost": sum(record.lost for record in records),
        "duplicated": sum(record.duplicated for record in records),
        "repeated steps": sum(record.repeated_steps for record in records),
        "recovery p50": p50,
        "recovery p99": p99,
    }


@pytest.fixture
def record(request: pytest.FixtureRequest, seed: int) -> Record:
    """What comes of this run."""
    return Record(request.node.get_closest_marker("row").args[0], seed)


# ------------------------------------------------------------------------------------------------------ installations


class Houses:
    """An installation with an API on each kind of database, made when it is first asked for, and kept."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest, stack: ExitStack) -> None:
        self._folder, self._request, self._stack = folder, request, stack
        self._made: dict[str, tuple[RunningService, str]] = {}
        self._weights: dict[str, str] = {}
        self.models: dict[str, str] = {}  # one that each installation serves
        self.crash_file = folder / "crash"

    def get(self, kind: str) -> tuple[RunningService, str]:
        """The service, and the dataset in it that all work is done on."""
        if kind not in self._made:
            settings = {
                "broker_url": self._request.getfixturevalue("valkey_server"),
                "database_url": self._new_postgres() if kind == "postgres" else None,
                "environment": "test",
                "crash_file": self.crash_file,
            }
            service = self._stack.enter_context(running(self._folder / kind / "home", **settings))
            service.start_api()
            with service.client() as client:
                self._made[kind] = service, upload(client, ROWS)
            self._weights["full"], self.models[kind] = self._train(kind, "full")
        return self._made[kind]

    def weights_of(self, work: str) -> str:
        """The digest of what a piece of work comes to when nothing happens to it."""
        if work not in self._weights:
            self.get("sqlite")  # which may have done it
        if work not in self._weights:
            self._weights[work], _ = self._train("sqlite", work)
        return self._weights[work]

    def _train(self, kind: str, work: str) -> tuple[str, str]:
        """Do a piece of work in one go: the weights' digest, and the model."""
        service, dataset = self._made[kind]
        with service.client() as client:
            site = Site(service, client, dataset, Record("", 0), self.weights_of)
            worker = service.start_worker()
            job = site.submit(work, checkpoint_every_seconds=86_400)
            model = service.wait_for_job(client, job, ["succeeded"])["model_id"]
            assert worker.stop() == 0
        return digest_of_weights(service, job), model

    def _new_postgres(self) -> str:
        uri: str = self._request.getfixturevalue("postgres_server")
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("CREATE DATABASE faults")
        return uri.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", "/faults?")


@contextmanager
def own_site(home: Path, houses: Houses, record: Record, **settings: Any) -> Iterator[Site]:
    """An installation for one test alone."""
    with running(home, **settings) as service:
        service.start_api()
        with service.client() as client:
            yield Site(service, client, upload(client, ROWS), record, houses.weights_of)


@pytest.fixture(scope="session")
def houses(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Houses]:
    with ExitStack() as stack:
        yield Houses(tmp_path_factory.mktemp("faults"), request, stack)


@pytest.fixture
def site(houses: Houses, record: Record, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A lasting installation; a test's workers end with the test."""
    kind = "postgres" if record.seed % 2 else "sqlite"
    service, dataset = houses.get(kind)
    before = len(service.programs)
    with service.client() as client:
        site = Site(service, client, dataset, record, houses.weights_of)
        is_watched = request.node.get_closest_marker("row").kwargs.get("is_watched", True)
        watch = Watch(service, houses.models[kind]) if is_watched else None
        yield site
        if watch is not None:
            watch.stop()
            assert watch.failures == []
        for status in ("queued", "running", "paused"):
            for job in all_items(site.client, "/v1/jobs", status=status):
                site.client.post(f"/v1/jobs/{job['id']}/cancel")  # of a test that failed: the next must not run it
    for program in service.programs[before:]:
        if "api" not in program.log.name:
            program.stop()
    assert service.trainers() == set()
