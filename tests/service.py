"""The real thing, for tests: the API, workers or `minimand up` as processes of their own, spoken to over HTTP.

Its settings come by environment, as an operator's do; leases and polls are short, so that a fault test need not wait.
"""

import atexit
import contextlib
import csv
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil  # type: ignore[import-untyped]
from fastapi.testclient import TestClient

from app.db.migrate import upgrade
from app.db.session import Database
from app.db.tables import ModelRow
from app.http.services import Services
from app.ids import new_id
from app.main import create_app
from app.settings import Settings
from app.storage import FileStore
from app.supervisor import PARENT_PID_VARIABLE
from ml.artifact.description import DESCRIPTION
from ml.artifact.manifest import MANIFEST, publish_folder
from tests.conftest import wait_until_gone
from tests.tiny_base import MAX_LENGTH, learnable_rows

LEASE_SECONDS = 6.0  # a worker that gets little of a busy machine must still renew it in time
POLL_SECONDS = 0.5
# For what has to come. Nothing takes so long but on a machine with much else to do, which is no fault of ours.
PATIENCE_SECONDS = 200
ENDED = ("succeeded", "failed", "cancelled")

Found = TypeVar("Found")


class Program:
    """One of our commands, running, with what it printed."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path, *, is_tied: bool) -> None:
        self.log = log
        # Tied to this process: a test run that is killed leaves no server behind. `up` has nobody above it.
        tie = {PARENT_PID_VARIABLE: str(os.getpid())} if is_tied else {}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.cli", *arguments],
                env={**environment, **tie},
                cwd=log.parent,  # where an operator stands must not matter
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> str:
        """The first group of a pattern, once the program has printed it."""

        def look() -> "re.Match[str] | None":
            assert self.is_running or re.search(pattern, self.said()), f"it ended:\n{self.said()}"
            return re.search(pattern, self.said())

        found = wait_until(look, PATIENCE_SECONDS, lambda: f"no {pattern!r} in:\n{self.said()}")
        return found[found.re.groups]

    def kill(self) -> None:
        """SIGKILL: no time for last words."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.is_running:
            self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)


class RunningService:
    """One installation: a home, a database, a broker, and whichever of its programs were started."""

    def __init__(self, home: Path, *, has_tiny_base: bool = True, **settings: object) -> None:
        """settings: by field name, e.g. `broker_url`; None leaves a default."""
        self.home = home.resolve()
        self.home.mkdir(parents=True, exist_ok=True)
        given = {
            "home": self.home,
            "port": 0,
            "lease_seconds": LEASE_SECONDS,
            "poll_seconds": POLL_SECONDS,
            "trainer_threads": 1,
            "trainer_nice": 0,
            # A spare costs 5 s of the processor, also where no job comes that would take it.
            "spare_trainers": False,
            "inference_threads": 1,
            "devices": "cpu",
            "base_models": json.dumps({"tiny": str(tiny_base())} if has_tiny_base else {}),
            **settings,
        }
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("MINIMAND_")}
        self.environment |= _variables(given)
        self.programs: list[Program] = []
        self.url = ""

    # ------------------------------------------------------------------------------------------------------ programs

    def start_up(self) -> Program:
        """`minimand up`: everything in one place."""
        program = self._start("up")
        self.url = program.wait_for(r"Minimand is ready: (http://\S+)")
        return program

    def start_api(self) -> Program:
        """The schema, then the API."""
        migrated = self._start("migrate")
        assert migrated.process.wait(PATIENCE_SECONDS) == 0, migrated.said()
        program = self._start("api")
        self.url = program.wait_for(r"Listening on (http://\S+)")
        wait_until(self._is_ready, PATIENCE_SECONDS, program.said)
        return program

    def start_inference(self) -> tuple[Program, str]:
        """A replica that answers predictions alone, and its URL."""
        program = self._start("inference")
        return program, program.wait_for(r"Listening on (http://\S+)")

    def start_worker(self, **settings: object) -> Program:
        """A worker with settings of its own, ready to claim. The command becomes `python -m workers`."""
        program = self._start("worker", **settings)
        program.wait_for(r"(workers:? ready)")
        return program

    def close(self) -> None:
        """End all that still runs, and see that nothing is left."""
        for program in reversed(self.programs):
            program.stop()
        wait_until_gone(self.trainers(), timeout_seconds=10)

    def _start(self, role: str, **settings: object) -> Program:
        log = self.home.parent / f"{self.home.name}-{len(self.programs)}-{role}.log"
        program = Program([role], self.environment | _variables(settings), log, is_tied=role != "up")
        self.programs.append(program)
        return program

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    # --------------------------------------------------------------------------------------------------- what it does

    def client(self, **headers: str) -> httpx.Client:
        """Speaks to the API with the admin key; every reply must name its request."""
        key = (self.home / "admin.key").read_text().strip()
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}", **headers},
            timeout=PATIENCE_SECONDS,
            event_hooks={"response": [_require_request_id]},
        )

    def trainers(self) -> set[int]:
        """The trainers of this home that run now, spare ones too."""
        return {pid for pid, words in _processes() if "ml.training" in words and self._is_mine(words)}

    def processes(self) -> set[int]:
        """All processes whose command line or environment names this home: trainers, broker, worker, API."""
        return {pid for pid, words in _processes() if self._is_mine(words) or self._is_mine(_environment_of(pid))}

    def trainers_at_work(self) -> set[int]:
        """Those that have a run: they write its log."""
        runs = self.home / "scratch" / "runs"
        return {pid for pid in self.trainers() if any(runs in file.parents for file in _open_files(pid))}

    def wait_for_spare(self) -> int:
        """The pid of a spare trainer that is at its imports or past them, and so tied to its worker."""

        def look() -> set[int]:
            return {pid for pid in self.trainers() - self.trainers_at_work() if _cpu_seconds_of(pid) > 1}

        return min(wait_until(look, PATIENCE_SECONDS, self.log_of_all))

    def wait_for_trainer(self, *, other_than: set[int] = frozenset()) -> int:  # type: ignore[assignment]
        """The pid of a trainer at work."""
        return min(wait_until(lambda: self.trainers_at_work() - other_than, PATIENCE_SECONDS, self.log_of_all))

    def _is_mine(self, words: Sequence[str]) -> bool:
        return any(word == str(self.home) or f"{self.home}/" in word for word in words)

    def wait_for_job(
        self,
        client: httpx.Client,
        job_id: str,
        statuses: Sequence[str] = ENDED,
        timeout_seconds: float = PATIENCE_SECONDS,
    ) -> dict[str, Any]:
        """The job, once it has one of these statuses."""

        def look() -> dict[str, Any] | None:
            job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
            assert job["status"] in statuses or job["status"] not in ENDED, f"{job}\n{self.log_of_all()}"
            return job if job["status"] in statuses else None

        return wait_until(look, timeout_seconds, self.log_of_all)

    def wait_for_checkpoint(self, client: httpx.Client, job_id: str, *, after: int = 0) -> int:
        """The step of a job's newest checkpoint, once there is one later than `after`."""

        def look() -> int:
            page = client.get(f"/v1/jobs/{job_id}/checkpoints", params={"limit": 100}).raise_for_status().json()
            return max((one["step"] for one in page["data"] if one["step"] > after), default=0)

        return wait_until(look, PATIENCE_SECONDS, self.log_of_all)

    def run_directories(self) -> list[Path]:
        """What lies where trainers work."""
        return list((self.home / "scratch" / "runs").glob("*"))

    def temporary_files(self) -> list[Path]:
        """What was begun in the store and never finished."""
        return list((self.home / "files").rglob(".tmp-*"))

    def log_of_all(self) -> str:
        return "\n".join(f"--- {program.log.name}\n{program.said()[-4000:]}" for program in self.programs)


@contextlib.contextmanager
def running(home: Path, **settings: Any) -> Iterator[RunningService]:
    """An installation whose programs end with the block."""
    service = RunningService(home, **settings)
    try:
        yield service
    finally:
        service.close()


def wait_until(look: Callable[[], Found | None], timeout_seconds: float, explain: Callable[[], str] = str) -> Found:
    """What `look` finds, once it finds something."""
    give_up_at = time.monotonic() + timeout_seconds
    while not (found := look()):
        assert time.monotonic() < give_up_at, f"not within {timeout_seconds} s; {explain()}"
        time.sleep(0.05)
    return found


class AppHouse:
    """The API's application in this process, over a database and a folder of its own: no worker, and no broker."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, **settings)
        upgrade(self.settings.resolved_database_url)
        self.app = create_app(self.settings)
        self.services: Services = self.app.state.services
        self.database = self.services.database
        secret = self.services.keys.ensure_admin_key(self.settings.admin_key_path)
        assert secret is not None
        self.secret = secret
        self.client = self.client_with(secret)

    def client_with(self, secret: str | None) -> TestClient:
        """A client with this key, or with none."""
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return TestClient(self.app, raise_server_exceptions=False, headers=headers)

    def client_of_another_project(self) -> TestClient:
        """A client whose key opens a new project."""
        reply = self.client.post("/v1/projects", json={"name": "another"})
        assert reply.status_code == 201, reply.text
        return self.client_with(reply.json()["key"]["secret"])

    def client_with_scopes(self, *scopes: str, **limits: int) -> TestClient:
        """A client whose key has these scopes, and limits of its own."""
        reply = self.client.post("/v1/keys", json={"name": "k", "scopes": scopes, "limits": limits})
        assert reply.status_code == 201, reply.text
        return self.client_with(reply.json()["secret"])

    def close(self) -> None:
        """Let go of threads and connections."""
        self.services.predictions.close()
        self.services.limits.close()
        self.services.served.close()
        self.database.close()


def error_of(reply: Any) -> dict[str, Any]:
    """The error in a reply, which must have the one shape and name its request."""
    assert reply.headers["x-request-id"]
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"error"}, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert error["code"]
    return error


def copy_model(
    database: Database,
    store: FileStore,
    model: str,
    *,
    is_turned: bool = False,
    task: Mapping[str, Any] | None = None,
    takes_pairs: bool = False,
) -> str:
    """Another model with the same files under another key. is_turned: each of its labels is in the next one's place,
    so that it answers every text otherwise. task: what of its task's state is otherwise, for the same outputs.
    takes_pairs: whether it says so of itself.
    """
    model_id = new_id("mdl")
    with database.write() as session, tempfile.TemporaryDirectory() as scratch:
        row = session.get_one(ModelRow, model)
        folder = store.local_path(row.folder)
        if is_turned:
            labels = json.loads((folder / DESCRIPTION).read_text())["task"]["labels"]
            task = {"labels": [*labels[1:], labels[0]]}
        if task or takes_pairs:
            folder = _change(folder, Path(scratch) / "artifact", task or {}, takes_pairs=takes_pairs)
        store.put_folder(folder, f"copies/{model_id}")
        columns = {column.key: getattr(row, column.key) for column in ModelRow.__mapper__.column_attrs}
        other = {"id": model_id, "job_id": new_id("job"), "folder": f"copies/{model_id}"}
        session.add(ModelRow(**{**columns, **other}))
    return model_id


def _change(source: Path, target: Path, task: Mapping[str, Any], *, takes_pairs: bool) -> Path:
    with publish_folder(target, "artifact", {}) as folder:
        for file in source.iterdir():
            if file.name != MANIFEST:
                shutil.copy(file, folder)
        description = json.loads((folder / DESCRIPTION).read_text())
        description["task"] |= task
        description["takes_pairs"] = takes_pairs
        (folder / DESCRIPTION).write_text(json.dumps(description))
    return target


# ------------------------------------------------------------------------------------------------------------- the work


@functools.cache
def tiny_base() -> Path:
    """The folder of a tiny base model, made once in a session, by a process of its own: torch stays out of this one."""
    folder = Path(tempfile.mkdtemp(prefix="minimand-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    code = "import sys, pathlib, tests.tiny_base as tiny; tiny.make_tiny_base(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=Path(__file__).parents[1], check=True)
    return folder


def tickets(rows: int, *, text: str = "text", label: str = "label", seed: int = 0) -> bytes:
    """A CSV of short requests under three labels, in turn, that even a tiny model learns."""
    table = io.StringIO()
    csv.writer(table).writerows([(text, label), *learnable_rows(rows, seed)])
    return table.getvalue().encode()


def upload(client: httpx.Client, content: bytes, filename: str = "tickets.csv", **form: str) -> str:
    """The id of a new dataset."""
    reply = client.post("/v1/datasets", files={"file": (filename, content)}, data=form)
    assert reply.status_code == 201, reply.text
    assert reply.headers["location"] == f"/v1/datasets/{reply.json()['id']}"
    dataset_id: str = reply.json()["id"]
    return dataset_id


def tiny_spec(dataset: str, **training: Any) -> dict[str, Any]:
    """A job of about a second of training on the tiny base model."""
    optimizer = {"type": "adamw", "learning_rate": 3e-3}
    given = {"epochs": 12, "batch_size": 8, "max_length": MAX_LENGTH, "optimizer": optimizer, **training}
    return {"dataset": dataset, "model": "tiny", "training": given}


def slow_spec(dataset: str, **training: Any) -> dict[str, Any]:
    """A job of some seconds of training, which leaves time for a fault, with a checkpoint every few steps."""
    return tiny_spec(dataset, **{"epochs": 1000, "max_steps": 400, "checkpoint_every_seconds": 0.3, **training})


def submit(client: httpx.Client, spec: dict[str, Any], **headers: str) -> str:
    """The id of a new job."""
    reply = client.post("/v1/jobs", json=spec, headers=headers)
    assert reply.status_code == 201, reply.text
    assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"
    job_id: str = reply.json()["id"]
    return job_id


def all_items(client: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """Every item of a list, page by page; each has an id, and none comes twice."""
    items: list[dict[str, Any]] = []
    after: dict[str, Any] = {}
    while True:
        page = client.get(path, params={**query, **after}).raise_for_status().json()
        assert page["object"] == "list"
        ids = [item["id"] for item in page["data"]]
        assert [page["first_id"], page["last_id"]] == ([ids[0], ids[-1]] if ids else [None, None])
        items += page["data"]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    ids = [item["id"] for item in items]
    assert len(set(ids)) == len(ids)
    return items


def events_of(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """A job's whole story."""
    return all_items(client, f"/v1/jobs/{job_id}/events", limit=100)


def reasons_of(events: Sequence[dict[str, Any]]) -> list[str]:
    """The reasons of its status events."""
    return [event["data"]["reason"] for event in events if event["type"] == "status"]


def _variables(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"MINIMAND_{name.upper()}": str(value) for name, value in settings.items() if value is not None}


def _require_request_id(reply: httpx.Response) -> None:
    assert reply.headers.get("x-request-id"), f"{reply.request.method} {reply.request.url} has no x-request-id"


def _processes() -> Iterator[tuple[int, list[str]]]:
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process.pid, process.info["cmdline"] or []


def _cpu_seconds_of(pid: int) -> float:
    try:
        return float(psutil.Process(pid).cpu_times().user)
    except psutil.NoSuchProcess:
        return 0.0


def _open_files(pid: int) -> list[Path]:
    try:
        return [Path(file.path) for file in psutil.Process(pid).open_files()]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _environment_of(pid: int) -> list[str]:
    try:
        return [value for name, value in psutil.Process(pid).environ().items() if name == "MINIMAND_HOME"]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
