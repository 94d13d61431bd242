"""How long a submitted job waits for its first training step: with a spare trainer, and without one.

The service runs as an operator's does, with the settings of the environment; the jobs train MiniLM on the example data,
one after the other. What others do on the machine meanwhile counts: the load is written down beside the figures.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

JOBS = 5
TARGET_SECONDS = 3.0
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "support.csv"
RESULTS = Path(__file__).parent / "results" / "first_step.json"
SPEC = {"loss": {"type": "focal", "gamma": 2.0}, "training": {"max_steps": 15, "batch_size": 32}}


@dataclass(frozen=True)
class Wait:
    """Seconds of one job, by what they went to."""

    claimed: float  # a worker has it
    prepared: float  # its trainer has started, read the rows, and loaded the base model
    stepped: float  # the first step is made

    @property
    def total(self) -> float:
        """From the submitted job to its first step."""
        return self.claimed + self.prepared + self.stepped


class Service:
    """`minimand up` on a home of its own, spoken to over HTTP."""

    def __init__(self, home: Path, client: httpx.Client) -> None:
        self.home, self.client = home, client
        with EXAMPLE.open("rb") as file:
            self.dataset = self._checked(client.post("/v1/datasets", files={"file": file}))["id"]

    def run_job(self) -> Wait:
        """Submit a job, and wait for its end."""
        job = self._checked(self.client.post("/v1/jobs", json={"dataset": self.dataset, **SPEC}))
        path = f"/v1/jobs/{job['id']}"
        while job["status"] not in ("succeeded", "failed"):
            time.sleep(0.05)
            job = self._checked(self.client.get(path))
        if job["status"] == "failed":
            raise RuntimeError(job["error"])
        events = self._checked(self.client.get(f"{path}/events", params={"limit": 100}))["data"]
        claimed_at = next(event["created_at"] for event in events if event["data"].get("reason") == "claimed")
        prepared_at = next(event["created_at"] for event in events if event["message"].startswith("rows:"))
        return Wait(claimed_at - job["created_at"], prepared_at - claimed_at, job["first_step_at"] - prepared_at)

    def wait_for_spare(self) -> psutil.Process:
        """The spare trainer, once it has done its imports and waits."""
        quiet: list[bool] = []
        while True:
            spares = [one for one in psutil.process_iter(["cmdline"]) if self._is_spare(one.info["cmdline"] or [])]
            quiet.append(bool(spares) and spares[0].status() == psutil.STATUS_SLEEPING)
            if len(quiet) >= 20 and all(quiet[-20:]):
                return spares[0]
            time.sleep(0.1)

    def _is_spare(self, words: list[str]) -> bool:
        return "--spare" in words and str(self.home) in words

    @staticmethod
    def _checked(reply: httpx.Response) -> dict[str, Any]:
        answer: dict[str, Any] = reply.raise_for_status().json()
        return answer


@contextmanager
def running(**settings: str) -> Iterator[Service]:
    """The service, until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        home, log = Path(folder).resolve() / "home", Path(folder) / "log"
        environment = {**os.environ, "MINIMAND_HOME": str(home), "MINIMAND_PORT": "0", **settings}
        with log.open("wb") as output:
            up = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.cli", "up"], env=environment, stdout=output, stderr=output
            )
        try:
            while not (url := re.search(r"is ready: (\S+)", log.read_text())):
                if up.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.1)
            headers = {"Authorization": f"Bearer {(home / 'admin.key').read_text().strip()}"}
            with httpx.Client(base_url=url[1], headers=headers, timeout=60, trust_env=False) as client:
                yield Service(home, client)
        finally:
            up.terminate()
            up.wait()


def measure() -> dict[str, Any]:
    """Jobs without a spare; with one that is ready; and with one, each as soon as the one before has ended."""
    with running(MINIMAND_SPARE_TRAINERS="false") as service:
        cold = _repeat(service.run_job)
    with running() as service:

        def run_when_ready() -> Wait:
            service.wait_for_spare()
            return service.run_job()

        ready = _repeat(run_when_ready)
        in_a_row = _repeat(service.run_job)
        memory = service.wait_for_spare().memory_full_info()
    return {
        "jobs": JOBS,
        "load_average": os.getloadavg()[1],
        "spare_bytes": {"resident": memory.rss, "its_own": memory.uss},
        "without": cold,
        "with_spare": ready,
        "with_spare_in_a_row": in_a_row,
    }


def _repeat(run: Callable[[], Wait]) -> dict[str, Any]:
    waits = [run() for _ in range(JOBS)]
    return {
        "median_seconds": statistics.median(wait.total for wait in waits),
        "median_parts": {part: statistics.median(getattr(wait, part) for wait in waits) for part in asdict(waits[0])},
        "runs": [asdict(wait) for wait in waits],
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    names = {
        "without": "without a spare",
        "with_spare": "with a spare",
        "with_spare_in_a_row": "  right after another job",
    }
    print(f"seconds from a submitted job to its first step, medians of {result['jobs']} jobs\n")
    print(f"{'':28}{'claimed':>10}{'prepared':>10}{'stepped':>10}{'all':>10}{'target':>10}")
    for name, words in names.items():
        row = result[name]
        parts = "".join(f"{seconds:>10.2f}" for seconds in row["median_parts"].values())
        target = f"≤ {TARGET_SECONDS:g}" if name == "with_spare" else ""
        print(f"{words:28}{parts}{row['median_seconds']:>10.2f}{target:>10}")
    megabytes = {name: size / 1e6 for name, size in result["spare_bytes"].items()}
    print(f"\na spare holds {megabytes['resident']:.0f} MB, {megabytes['its_own']:.0f} of them its own")
    print(f"load average {result['load_average']:.1f}")


def main() -> None:
    """Measure, print and write down."""
    result = measure()
    show(result)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
