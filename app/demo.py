"""`minimand demo`: the main job as a newcomer sees it, over HTTP like anyone else, with the service it starts itself.

It knows the API from outside only.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from app.settings import Settings

EXAMPLE = Path(__file__).parent.parent / "examples" / "support.csv"
START_SECONDS = 60
EPOCHS = 8

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def run_demo(settings: Settings, *, data: Path | None, text: str | None, label: str | None) -> int:
    """Upload, train with a focal loss, predict; then keep serving until Ctrl-C (`DEMO_EXIT=1`: stop). Exit status."""
    source = data or EXAMPLE
    if not source.is_file():
        console.print(f"[red]There is no file {source}.[/] Name one with --data.")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with _service(settings) as (url, supervisor):
            key = settings.admin_key_path.read_text().strip()
            with httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False
            ) as client:
                _walk(client, source, text, label, settings)
            console.print(f"\n  Docs     [bold]{url}/docs[/]   (Authorize with the key in {settings.admin_key_path})")
            if os.environ.get("DEMO_EXIT") == "1":
                return 0
            console.print("  Serving until Ctrl-C.")
            supervisor.wait()
    except KeyboardInterrupt:
        console.print("  Stopped.")
    except DemoError as error:
        console.print(f"\n[red]{error}[/]")
        return 1
    return 0


def _interrupt(*_: object) -> None:
    """A demo that is ended, however, stops the service it started."""
    raise KeyboardInterrupt


class DemoError(Exception):
    """Something in the demo did not work, said for its user."""


def _walk(client: httpx.Client, source: Path, text: str | None, label: str | None, settings: Settings) -> None:
    console.print(f"[bold]1[/] Uploading {source}")
    dataset = _upload(client, source, text, label)
    counts = dataset["labels"]
    console.print(f"  {dataset['id']}: {dataset['rows']} rows, {len(counts)} labels: {_few(counts)}")
    spec: dict[str, Any] = {
        "name": f"demo-{source.stem}"[:200],
        "dataset": dataset["id"],
        "loss": {"type": "focal", "gamma": 2.0},
        "training": {"epochs": EPOCHS, "batch_size": 32, "optimizer": {"type": "adamw", "learning_rate": 3e-4}},
    }
    if dataset["rows"] > 5000:  # a big file of the user's own: enough steps to see it work, not a night's training
        spec["training"]["max_steps"] = 500
    console.print(f"[bold]2[/] Submitting a job with the loss {json.dumps(spec['loss'])}")
    job = _checked(client.post("/v1/jobs", json=spec))
    for warning in job["warnings"]:
        console.print(f"  [yellow]{warning}[/]")
    console.print(f"[bold]3[/] Training {job['id']}")
    job = _follow(client, job["id"], settings)
    _print_metrics(job)
    console.print(f"[bold]5[/] Three predictions by {job['model_id']}")
    texts = _sample(client, dataset)
    answer = _checked(client.post("/v1/predictions", json={"model": job["model_id"], "input": texts}))
    for one, result in zip(texts, answer["results"], strict=True):
        shown = " ".join(one.split())
        console.print(f"  [green]{result['label']}[/] {result['score']:.2f}  ", end="")
        console.print(shown if len(shown) < 80 else shown[:79] + "…", markup=False)
    console.print(f"  answered in {answer['timings_ms']['inference']:.1f} ms")


def _upload(client: httpx.Client, source: Path, text: str | None, label: str | None) -> dict[str, Any]:
    columns = {role: header for role, header in (("text", text), ("label", label)) if header}
    form = {"columns": json.dumps(columns)} if columns else {}
    with source.open("rb") as file:
        return _checked(client.post("/v1/datasets", files={"file": (source.name, file)}, data=form))


def _follow(client: httpx.Client, job_id: str, settings: Settings) -> dict[str, Any]:
    """Show a live bar until the job has ended."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total} steps  loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task("waiting for the worker", total=None, loss="-")
        while True:
            job = _checked(client.get(f"/v1/jobs/{job_id}"))
            progress = job["progress"]
            if progress["steps"]:
                is_training = progress["step"] < progress["steps"]
                bar.update(
                    task,
                    description="training" if is_training else "evaluating and exporting",
                    completed=progress["step"],
                    total=progress["steps"],
                    loss=f"{progress['loss']:.4f}",
                )
            elif job["status"] == "running":
                bar.update(task, description="loading the model")
            if job["status"] == "succeeded":
                bar.update(task, description="done")
                return job
            if job["status"] in ("failed", "cancelled"):
                said = job["error"]["message"] if job["error"] else f"the job was {job['status']}"
                raise DemoError(f"{said}\nThe worker's log is above; files are in {settings.home.resolve()}.")
            time.sleep(0.3)


def _print_metrics(job: dict[str, Any]) -> None:
    part = "test" if "test" in job["metrics"] else "validation"
    console.print(f"[bold]4[/] On the {part} part")
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in job["metrics"].get(part, {}).items():
        table.add_row("", name, f"{value:.4f}")
    console.print(table)


def _sample(client: httpx.Client, dataset: dict[str, Any]) -> list[str]:
    """Three texts of the dataset, from its end."""
    rows = _checked(client.get(f"/v1/datasets/{dataset['id']}/rows", params={"limit": 3, "order": "desc"}))
    return [row["cells"][dataset["columns"]["text"]] for row in rows["data"]]


def _checked(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    if response.is_error:
        error = body["error"]
        where = f" (at {error['param']})" if error["param"] else ""
        raise DemoError(f"The service answered {response.status_code}: {error['message']}{where}")
    return body


def _few(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{label} {rows}" for label, rows in list(counts.items())[:8])
    return shown + (" …" if len(counts) > 8 else "")


@contextmanager
def _service(settings: Settings) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """`minimand up` as its own process, stopped at the end."""
    home, port = settings.home.resolve(), _free_port(settings)
    home.mkdir(parents=True, exist_ok=True)
    log = home / "demo.log"
    console.print(f"[bold]0[/] Starting broker, API and worker (home {home}, log {log})")
    command = [sys.executable, "-P", "-m", "app.cli", "up", "--home", str(home), "--port", str(port)]
    with log.open("wb") as output:
        # Its own session: Ctrl-C reaches us alone, and we stop it in order.
        supervisor = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, supervisor, log)
        yield url, supervisor
    finally:
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(timeout=60)
        except subprocess.TimeoutExpired:
            supervisor.kill()


def _wait_until_ready(url: str, supervisor: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if supervisor.poll() is not None:
            raise DemoError(f"The service did not start:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            if httpx.get(f"{url}/readyz", timeout=2, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise DemoError(f"The service was not ready within {START_SECONDS} s; see {log}.")


def _free_port(settings: Settings) -> int:
    """The port that was asked for, or a free one when somebody else has it."""
    for port in (settings.port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError("There is no free port.")
