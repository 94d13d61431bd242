"""An installation that faults befall, and the account of what was asked of it.

Every training job here is one of a few pieces of work, so all models of one piece must be the same bits, however often
they were interrupted. In the end `settle` goes through everything: invariants I1 to I6 and I9 of the design.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from ml.artifact.manifest import verify_folder
from tests.service import (
    ENDED,
    PATIENCE_SECONDS,
    Program,
    RunningService,
    all_items,
    events_of,
    slow_spec,
    tickets,
    wait_until,
)

ROWS = tickets(160)
# What a job learns: two terms whose balance is learned too, so there is adaptive state to lose.
LOSS = {"terms": [{"loss": "cross_entropy"}, {"loss": "focal"}], "combine": "uncertainty"}

# Tunings, each with so many steps that a trainer is some seconds at work.
WORK: dict[str, tuple[Any, int]] = {
    "full": ("full", 240),
    "lora": ({"type": "lora", "rank": 4}, 240),
    "frozen": ("frozen", 2400),
}


@dataclass
class Record:
    """What one run of a row of the fault table came to."""

    row: str
    seed: int
    lost: int = 0
    duplicated: int = 0
    repeated_steps: int = 0
    recoveries: list[float] = field(default_factory=list)  # seconds from a fault to the next step, or to the next claim
    failed: bool = False


class Watch:
    """Asks the API for its health and for a prediction all the while; both must always be answered."""

    def __init__(self, service: RunningService, model: str) -> None:
        self._call = {"model": model, "input": "where is my parcel"}
        self._client = service.client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.failures: list[str] = []
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        answers: set[str] = set()
        while not self._over.wait(0.5):
            try:
                self._client.get("/healthz").raise_for_status()
                reply = self._client.post("/v1/predictions", json=self._call).raise_for_status()
                (result,) = reply.json()["results"]
                answers.add(f"{result['label']} {result['score']:.4f}")
                assert len(answers) == 1, answers
            except (httpx.HTTPError, AssertionError) as error:
                self.failures.append(f"{time.time():.1f} {error!r}")


@dataclass
class Site:
    """An installation with a running API, and no worker but those a test starts."""

    service: RunningService
    client: httpx.Client
    dataset: str
    record: Record
    weights_of: Callable[[str], str]  # of a piece of work done in one go
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the API said of each job it took
    faults: list[float] = field(default_factory=list)  # when
    damaged: set[int] = field(default_factory=set)  # steps whose stored checkpoint a test has spoilt

    # ---------------------------------------------------------------------------------------------------------- asking

    def spec(self, work: str = "full", **training: Any) -> dict[str, Any]:
        """The job that does a piece of work."""
        tuning, steps = WORK[work]
        return {**slow_spec(self.dataset, max_steps=steps, **training), "tuning": tuning, "loss": LOSS, "name": work}

    def submit(self, work: str = "full", **training: Any) -> str:
        """The id of a new job."""
        return self.accept(self.client.post("/v1/jobs", json=self.spec(work, **training)))

    def accept(self, reply: httpx.Response) -> str:
        """Note a job that the API says it took."""
        assert reply.status_code == 201, reply.text
        job = reply.json()
        self.accepted[job["id"]] = job["spec"]
        return str(job["id"])

    def wait_until_under_way(self, job: str) -> tuple[int, int]:
        """The pid of the job's trainer, and the step of a checkpoint that is stored."""
        pid = self.service.wait_for_trainer()
        return pid, self.service.wait_for_checkpoint(self.client, job)

    def strike(self, fault: Callable[[], object]) -> None:
        """Do harm, and note when."""
        self.faults.append(time.time())
        fault()

    def restart_api(self) -> Program:
        """Another API on the same home, and the client that speaks to it."""
        program = self.service.start_api()
        self.client = self.service.client()
        return program

    # ------------------------------------------------------------------------------------------------------ accounting

    def settle(
        self, *, expected: str = "succeeded", attempts: int = 0, timeout_seconds: float = PATIENCE_SECONDS
    ) -> list[dict[str, Any]]:
        """Once every job has ended: nothing is lost, doubled, repeated, damaged or left. Returns the jobs.

        attempts: how many a job may have been charged, at most.
        """
        jobs = [self._ended(job, timeout_seconds) for job in self.accepted]
        models = Counter(model["job_id"] for model in all_items(self.client, "/v1/models"))
        for job in jobs:
            events = events_of(self.client, job["id"])
            ends = [event for event in events if event["data"].get("reason") in ENDED]
            has_model = job["status"] == "succeeded"
            self.record.lost += not ends or models[job["id"]] < has_model
            self.record.duplicated += len(ends) > 1 or models[job["id"]] > has_model
            self._account_for_steps(job, events)
            self._account_for_recovery(events)
            assert job["spec"] == self.accepted[job["id"]], "what was asked is not what was kept"
            assert job["status"] == expected, job
            assert job["attempts"] <= attempts, job
            if has_model:
                assert job["progress"]["step"] == job["progress"]["steps"] == WORK[job["name"]][1]
                assert digest_of_weights(self.service, job["id"]) == self.weights_of(job["name"]), "not the same bits"
            self._require_stored(job["id"])
        assert self.record.lost == self.record.duplicated == 0, self.record
        wait_until(lambda: not self.service.run_directories(), 30)
        wait_until(lambda: not self.service.temporary_files(), 30)
        return jobs

    def _ended(self, job: str, timeout_seconds: float) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            with suppress(httpx.TransportError):
                reply = self.client.get(f"/v1/jobs/{job}")
                assert reply.status_code != 404, f"{job} was accepted and is gone"
                if reply.is_success and reply.json()["status"] in ENDED:
                    found: dict[str, Any] = reply.json()
                    return found
            return None

        return wait_until(look, timeout_seconds, self.service.log_of_all)

    def _account_for_steps(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        """After a resume from step N none up to N is made again; those after it that had been made are counted."""
        resumed_from, newest, stored = 0, 0, {0}
        for event in events:
            if event["type"] == "checkpoint":
                stored.add(event["data"]["step"])
            elif event["type"] == "metrics" and any(name.startswith("train/") for name in event["data"]["values"]):
                step = event["data"]["step"]
                assert step > resumed_from, f"{job['id']}: step {step} again, after a resume from {resumed_from}"
                newest = max(newest, step)
            elif event["data"].get("reason") == "resumed" and "step" in event["data"]:
                resumed_from = event["data"]["step"]
                usable = sorted(stored - self.damaged)
                assert resumed_from == usable[-1], f"{job['id']}: resumed from {resumed_from}, had {usable}"
                self.record.repeated_steps += max(0, newest - resumed_from)
                newest = resumed_from

    def _account_for_recovery(self, events: list[dict[str, Any]]) -> None:
        """From each fault that took the job from its worker to the next step it made."""
        for struck in self.faults:
            later = [event for event in events if event["created_at"] > struck]
            reasons = [event["data"].get("reason") for event in later]
            if "requeued" not in reasons or "claimed" not in reasons[reasons.index("requeued") :]:
                continue
            later = later[reasons.index("claimed", reasons.index("requeued")) :]
            again = next((event for event in later if event["type"] in ("metrics", "checkpoint")), later[0])
            self.record.recoveries.append(again["created_at"] - struck)

    def _require_stored(self, job: str) -> None:
        """What rows name is there and verifies, and nothing else of the job is there."""
        folder = self.service.home / "files" / "jobs" / job
        kept = {one["id"] for one in all_items(self.client, f"/v1/jobs/{job}/checkpoints")}
        assert {path.name for path in folder.glob("*/checkpoints/*")} == kept
        for manifest in folder.rglob("manifest.json"):
            if json.loads(manifest.read_text()).get("step") not in self.damaged:
                verify_folder(manifest.parent)


def digest_of_weights(service: RunningService, job: str) -> str:
    """The digests of the weights in a finished job's one artifact."""
    (manifest,) = (service.home / "files" / "jobs" / job).glob("*/artifact/manifest.json")
    files = json.loads(manifest.read_text())["files"]
    return " ".join(files[name]["sha256"] for name in sorted(files) if name.endswith(".safetensors"))
