"""How fast our server answers, against others with the same model, texts and threads, and against onnxruntime alone.

Servers take turns, three times, the others stopped meanwhile; the medians count, so a busy machine slows them all. No
text comes twice. Every answer is compared with torch's: a wrong one counts as an error. It may be stopped at any time:
what was measured is kept under benchmarks/results/serving/ and not made again until app/, ml/ or this changes.

  minimand         `minimand api` over the home that trained the model, with its default settings
  infinity, LitServe, vLLM, pipeline    each in an environment of its own, made here, over the downloaded model
  onnxruntime      the file that ours serves: batches of 32 texts of like length, tokenized before; two threads
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.answers import Reference, ServedFile, judge
from benchmarks.data import read_rows, write_parts
from benchmarks.load import MOST_PER_SECOND, Load, drive_clients, drive_rate, require_wrk, text
from benchmarks.servers import (
    MAX_LENGTH,
    PEER_KINDS,
    THREADS,
    Kind,
    Model,
    NotInstalledError,
    NotStartedError,
    Server,
    our_kind,
)

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "serving"
OURS, RAW = "minimand", "onnxruntime"
ROUNDS, SECONDS = 3, 5.0
WARM_UP_SECONDS, WARM_UP_TEXTS = 1.0, 10_000_000  # the number of the first of the texts that warm up
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 1_200, 400, 800  # the latter two for what decides whether int8 will do
RAW_TEXTS, RAW_BATCH = 2_048, 32
SOURCES = (
    "app/**/*.py",
    "ml/**/*.py",
    *(f"benchmarks/{name}" for name in ("s*.py", "answers.py", "load.py", "wrk.lua", "peers/*.py")),
)

Body = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A load. kind: of texts; texts: in a request; without clients, arrivals at half of the rate at 64 clients."""

    name: str
    kind: str
    clients: int
    texts: int = 1

    @property
    def is_saturated(self) -> bool:
        """Whether the model is always at work."""
        return self.clients > 1


CELLS = (
    Cell("1 client", "short", 1),
    Cell("16 clients", "short", 16),
    Cell("64 clients", "short", 64),
    Cell("256 clients", "short", 256),
    Cell("32 texts a request, 4 clients", "short", 4, texts=32),
    Cell("long texts, 16 clients", "long", 16),
    Cell("mixed lengths, 64 clients", "mixed", 64),
    Cell("half of the rate", "short", 0),
)
HALF_OF = "64 clients"


# ----------------------------------------------------------------------------------------------------------- the model


def prepare_model() -> Model:
    """A MiniLM that the service fine-tuned on sst2, and what a user downloads of it; made again when ml/ changes."""
    folder, source = RESULTS / "model", _digest("ml/**/*.py")
    kept = folder / "kept.json"
    if not kept.exists() or json.loads(kept.read_text())["source"] != source:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print("training the model", flush=True)
        body = _train(folder)
        kept.write_text(json.dumps({"source": source, "model": body}, indent=1))
    body = json.loads(kept.read_text())["model"]
    file = "model.int8.onnx" if body["serving"]["format"] == "onnx-int8" else "model.onnx"
    print(f"served: {file} ({body['serving']['reason']})", flush=True)
    home = (folder / "home").resolve()
    return Model(body["id"], folder / "download", folder / "download" / file, home, _key(home))


def _train(folder: Path) -> Body:
    """Through the service, as a user does. The model's body."""
    draw = random.Random(17)
    rows = {part: [(row["text"], row["label"]) for row in read_rows("sst2", part)] for part in ("train", "dev", "test")}
    parts: dict[str, Iterable[tuple[str, Any]]] = {
        "train": draw.sample(rows["train"], TRAIN_ROWS),
        "validation": draw.sample(rows["dev"], VALIDATION_ROWS),
        "test": draw.sample(rows["test"], TEST_ROWS),
    }
    write_parts(folder / "sst2.csv", parts)
    # Uncalibrated: the peers answer the softmax of the logits, and so are all answers the same.
    spec = {"name": "sst2", "tuning": "full", "loss": "cross_entropy", "evaluation": {"calibrate": None}}
    with _service(folder / "home", folder / "log") as client:
        with (folder / "sst2.csv").open("rb") as file:
            dataset = _checked(client.post("/v1/datasets", files={"file": file}))
        job = _checked(client.post("/v1/jobs", json={**spec, "dataset": dataset["id"]}))
        while job["status"] not in ("succeeded", "failed"):
            time.sleep(0.5)
            job = _checked(client.get(f"/v1/jobs/{job['id']}"))
        if job["status"] == "failed":
            sys.exit(f"the model's training failed: {job['error']}")
        body = _checked(client.get(f"/v1/models/{job['model_id']}"))
        zipped = folder / "model.zip"
        zipped.write_bytes(client.get(f"/v1/models/{body['id']}/download").raise_for_status().content)
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(folder / "download")
    zipped.unlink()
    return body


@contextmanager
def _service(home: Path, log: Path) -> Iterator[httpx.Client]:
    """`minimand up` until the end of the block."""
    environment = {**os.environ, "MINIMAND_HOME": str(home.resolve()), "MINIMAND_PORT": "0"}
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli", "up"], env=environment, stdout=output, stderr=output
        )
    try:
        while not (url := re.search(r"is ready: (\S+)", log.read_text())):
            if up.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.1)
        headers = {"Authorization": f"Bearer {_key(home)}"}
        with httpx.Client(base_url=url[1], headers=headers, timeout=120, trust_env=False) as client:
            yield client
    finally:
        up.terminate()
        up.wait()


def _key(home: Path) -> str:
    return (home / "admin.key").read_text().strip()


def _checked(reply: httpx.Response) -> Body:
    answer: Body = reply.raise_for_status().json()
    return answer


def _digest(*patterns: str) -> str:
    """Of the repository's files that these name."""
    files = sorted(file for pattern in patterns for file in ROOT.glob(pattern))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------- one measurement


class Fleet:
    """The servers, each started when it is first needed, of which one works at a time."""

    def __init__(self, model: Model, scratch: Path) -> None:
        self._model, self._scratch = model, scratch
        self._servers: dict[str, Server] = {}
        self.missing: dict[str, str] = {}

    def at_work(self, kind: Kind | None) -> Server | None:
        """The server, alone at work; None where it cannot be had. kind: None stops all."""
        for server in self._servers.values():
            server.stop()
        if kind is None or kind.name in self.missing:
            return None
        if kind.name not in self._servers:
            try:
                server = Server(kind, self._model, self._scratch / kind.name.replace(" ", "-"))
                self._servers[kind.name] = server
                print(f"  {kind.name} answers after {server.wait_for(server.answers):.1f} s", flush=True)
            except NotInstalledError as error:
                self.missing[kind.name] = f"not installed: {error}"
            except NotStartedError as error:
                self.missing[kind.name] = f"does not start: {error}"
                self._servers.pop(kind.name).close()
            if kind.name in self.missing:
                print(f"  {kind.name}: {self.missing[kind.name]}", flush=True)
                return None
        self._servers[kind.name].go_on()
        return self._servers[kind.name]

    def close(self) -> None:
        """End them all."""
        for server in self._servers.values():
            server.close()


class Busy:
    """What the machine's processors did since this was made."""

    def __init__(self) -> None:
        self._since = self._now()

    def others_share(self, server_seconds: float) -> float:
        """The part of the processors that went to programs which have no part in the benchmark."""
        busy, whole, own = (now - then for now, then in zip(self._now(), self._since, strict=True))
        return max(0.0, busy - own - server_seconds) / whole

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of all processors at work, of all, and of this process with wrk."""
        times = psutil.cpu_times()
        whole = sum(times) - times.guest - times.guest_nice  # which user and nice hold already
        own = sum(os.times()[:4])
        return whole - times.idle - times.iowait, whole, own


def measure_server(server: Server, cell: Cell, asked: Body, reference: Reference) -> Body:
    """One load on one server."""

    def drive(first: int, seconds: float) -> Load:
        if not cell.clients:
            return drive_rate(server, cell.kind, first=first, rate=asked["rate"], seconds=seconds)
        with tempfile.TemporaryDirectory() as scratch:
            return drive_clients(
                server,
                cell.kind,
                first=first,
                clients=cell.clients,
                texts=cell.texts,
                seconds=seconds,
                scratch=Path(scratch),
            )

    drive(WARM_UP_TEXTS, WARM_UP_SECONDS)
    server.drain()
    busy, before = Busy(), server.cpu()
    load = drive(asked["first"], asked["seconds"])
    after = server.cpu()
    others = busy.others_share(sum(after.values()) - sum(before.values()))
    memory = server.memory()
    server.stop()  # before torch answers the same texts
    judged = judge(load, server.kind, reference, cell.kind, cell.texts)
    texts = max(1, judged["answers"])
    cpu = {name: 1000 * (seconds - before.get(name, 0.0)) / texts for name, seconds in after.items()}
    return {
        "texts_per_second": judged["answers"] / load.seconds,
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "late_ms": load.late_ms,
        "others_share": others,
        **judged,
        **memory,
        "cpu_ms_per_text": {name: each for name, each in cpu.items() if each > 0.01},
    }


def measure_raw(model: Model, cell: Cell, asked: Body) -> Body:
    """Texts a second of the served file alone, as our server opens it: see the module's words."""
    served = ServedFile(model)
    texts = [text(cell.kind, asked["first"] + i) for i in range(RAW_TEXTS)]
    encodings = sorted(served.encode(texts), key=len)
    batches = [served.feeds(encodings[start : start + RAW_BATCH]) for start in range(0, RAW_TEXTS, RAW_BATCH)]
    random.Random(17).shuffle(batches)  # whenever the time is over, short and long ones were as many
    for feeds in batches[:8]:
        served.session.run(None, feeds)
    done, begun, busy = 0, time.perf_counter(), Busy()
    for feeds in itertools.cycle(batches):
        served.session.run(None, feeds)
        done += RAW_BATCH
        if (seconds := time.perf_counter() - begun) > asked["seconds"]:
            break
    return {
        "texts_per_second": done / seconds,
        "tokens": statistics.mean(map(len, encodings)),
        "others_share": busy.others_share(0.0),
    }


def measure_start(fleet: Fleet, model: Model) -> Body:
    """Our API from the start of its process: seconds to /healthz and to the first answer; memory after 1,000."""
    fleet.at_work(None)
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(our_kind(model), model, Path(scratch))
        try:
            healthy = server.wait_for(server.is_healthy)
            idle = server.memory()
            answering = server.wait_for(server.answers)
            with httpx.Client(headers=server.headers, timeout=60, trust_env=False) as client:
                for number in range(WARM_UP_TEXTS, WARM_UP_TEXTS + 1_000):
                    body = server.body([text("short", number)])
                    client.post(server.url + server.kind.path, content=body).raise_for_status()
            return {"healthy_seconds": healthy, "answering_seconds": answering, "idle": idle, **server.memory()}
        finally:
            server.close()


# ---------------------------------------------------------------------------------------------------------- the series


def keep(asked: Body, make: Callable[[], Body | None]) -> Body | None:
    """A measurement, kept or made now; None, which is not kept, where it cannot be."""
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    file = RESULTS / "runs" / f"{key}.json"
    if not file.exists():
        if (made := make()) is None:
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"asked": asked, "measured": made}, indent=1))
    measured: Body = json.loads(file.read_text())["measured"]
    return measured


def middle(runs: Sequence[Body]) -> Body:
    """The medians of figures, also of those a level below; the sums of what counts errors."""
    merged: Body = {}
    for name, value in runs[-1].items():
        values = [run[name] for run in runs if name in run and run[name] is not None]
        if isinstance(value, dict):
            merged[name] = middle(values)
        elif name in ("failed", "wrong", "answers"):
            merged[name] = sum(values)
        elif isinstance(value, int | float):
            merged[name] = statistics.median(values)
        else:
            merged[name] = value
    return merged


def measure_all(model: Model, fleet: Fleet, kinds: Sequence[Kind], rounds: int, seconds: float) -> Body:
    """Every cell, every server in turn."""
    source, reference = _digest(*SOURCES), Reference(model)
    common = {"source": source, "model": model.id, "seconds": seconds}
    cells: Body = {}
    for place, cell in enumerate(CELLS):
        print(cell.name, flush=True)
        runs: dict[str, list[Body]] = {}
        for turn in range(rounds):
            first = (place * ROUNDS + turn) * int(max(MOST_PER_SECOND.values()) * seconds)
            asked = {**common, "cell": asdict(cell), "turn": turn, "first": first}
            for kind in kinds:
                its = {**asked, "way": kind.name}
                if not cell.clients:
                    its["rate"] = rate(cells[HALF_OF].get(kind.name, {"texts_per_second": 0.0})) / 2
                    if not its["rate"]:
                        continue

                def make(kind: Kind = kind, its: Body = its, cell: Cell = cell) -> Body | None:
                    server = fleet.at_work(kind)
                    return measure_server(server, cell, its, reference) if server else None

                if run := keep(its, make):
                    runs.setdefault(kind.name, []).append(run)
            if cell.is_saturated:

                def make_raw(its: Body = asked, cell: Cell = cell) -> Body:
                    fleet.at_work(None)
                    return measure_raw(model, cell, its)

                run = keep({**asked, "way": RAW}, make_raw)
                assert run is not None
                runs.setdefault(RAW, []).append(run)
        cells[cell.name] = {name: middle(several) for name, several in runs.items()}
        for name, run in cells[cell.name].items():
            print(f"  {name}: {run['texts_per_second']:.0f} texts/s", flush=True)
    starts = [
        keep({**common, "way": "start", "turn": turn}, lambda: measure_start(fleet, model)) for turn in range(rounds)
    ]
    return {"cells": cells, "start": middle([start for start in starts if start])}


# --------------------------------------------------------------------------------------------------------- what it says


def targets(found: Body) -> list[tuple[str, float, str, float]]:
    """What was aimed at: its name, what was measured, whether at least (≥) or at most (≤), and the limit."""
    cells = found["cells"]
    at_64 = {name: run["texts_per_second"] for name, run in cells[HALF_OF].items()}
    raw_64, ours_64 = at_64.pop(RAW), at_64.pop(OURS)
    lists, half = cells["32 texts a request, 4 clients"], cells["half of the rate"][OURS]
    rows = [
        ("of the raw rate, 32 texts a request", rate(lists[OURS]) / rate(lists[RAW]), "≥", 0.85),
        ("of the raw rate, one text a request, 64 clients", ours_64 / raw_64, "≥", 0.70),
        ("ms, p50 at one client", cells["1 client"][OURS]["p50_ms"], "≤", 2),
        ("× its p50: p99 at half of the rate", half["p99_ms"] / half["p50_ms"], "≤", 3),
        ("s from start to /healthz", found["start"]["healthy_seconds"], "≤", 2),
        ("MB after 1,000 predictions", found["start"]["rss_bytes"] / 1e6, "≤", 300),
    ]
    if at_64:
        best = max(at_64, key=lambda name: at_64[name])
        rows.insert(0, (f"× the best peer ({best}) at 64 clients", ours_64 / at_64[best], "≥", 2))
    return rows


def rate(run: Body) -> float:
    """Texts a second."""
    return float(run["texts_per_second"])


COLUMNS = (
    "server",
    "texts/s",
    "p50 ms",
    "p99 ms",
    "failed",
    "wrong",
    "answers",
    "beyond tolerance of torch",
    "labels changed",
    "mean move",
    "PSS MB",
    "CPU ms a text",
    "others' CPU",
)


def _row(server: str, run: Body) -> list[str]:
    others = f"{run['others_share']:.0%}"
    if server == RAW:
        return [server, f"{rate(run):.0f}", *[""] * (len(COLUMNS) - 3), others]
    row = [server, f"{rate(run):.0f}", f"{run['p50_ms']:.1f}", f"{run['p99_ms']:.1f}", str(run["failed"])]
    if run["answers"]:
        shares = (f"{run[name]:.1%}" for name in ("off_torch_share", "changed_share"))
        row += [str(run["wrong"]), str(run["answers"]), *shares, f"{run['mean_move']:.1g}"]
    else:
        row += ["", "0", "", "", ""]
    return [*row, f"{run['pss_bytes'] / 1e6:.0f}", f"{sum(run['cpu_ms_per_text'].values()):.2f}", others]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    filled = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *filled)]


def table(found: Body) -> str:
    """Everything as Markdown."""
    turns = "one turn" if found["rounds"] == 1 else f"medians of {found['rounds']} turns"
    lines = [
        f"Served: {found['file']}. {found['seconds']:g} s a load, {turns}, {THREADS} threads, {MAX_LENGTH} tokens."
    ]
    for name, runs in found["cells"].items():
        rows = [_row(server, run) for server, run in sorted(runs.items(), key=lambda one: -rate(one[1]))]
        lines += ["", f"### {name}", "", *_markdown(COLUMNS, rows)]
    lines += ["", "### Where the time of ours goes", ""]
    rows = []
    for name, runs in found["cells"].items():
        run, cpu = runs[OURS], runs[OURS]["cpu_ms_per_text"]
        stages = [f"{run['stages_ms'][stage]:.2f}" for stage in ("queue", "tokenize", "inference")]
        threads = [f"{cpu.get(f'process 0, {thread}', 0.0):.2f}" for thread in ("first thread", "others")]
        rows.append([name, *stages, f"{run['p50_ms']:.2f}", *threads])
    heads = ("load", "queue ms", "tokenize ms", "inference ms", "p50 ms", "CPU ms a text: event loop", "other threads")
    lines += _markdown(heads, rows)
    start = found["start"]
    lines += [
        "",
        f"`minimand api`: /healthz after {start['healthy_seconds']:.2f} s, the first answer after "
        f"{start['answering_seconds']:.2f} s; {start['idle']['rss_bytes'] / 1e6:.0f} MB at the start, "
        f"{start['rss_bytes'] / 1e6:.0f} MB after 1,000 predictions ({start['pss_bytes'] / 1e6:.0f} MB PSS).",
        "",
    ]
    rows = []
    for name, value, sense, limit in targets(found):
        is_met = value >= limit if sense == "≥" else value <= limit
        rows.append(
            [
                f"{sense} {limit:g} {name}",
                f"{value:.2f}",
                "met" if is_met else f"missed by {abs(value / limit - 1):.0%}",
            ]
        )
    lines += _markdown(("target", "measured", ""), rows)
    lines += [f"\n{name}: {why}" for name, why in found["missing"].items()]
    return "\n".join(lines)


def draw(found: Body, file: Path) -> None:
    """Texts a second by clients, as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = ["1 client", "16 clients", "64 clients", "256 clients", "32 texts a request, 4 clients"]
    servers = sorted(found["cells"][HALF_OF], key=lambda name: -rate(found["cells"][HALF_OF][name]))
    colours = dict(zip([s for s in servers if s != OURS], plt.cm.Greys(np.linspace(0.65, 0.2, 8)), strict=False))
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.85 / len(servers)
    for place, server in enumerate(servers):
        at = [i for i, cell in enumerate(shown) if server in found["cells"][cell]]
        values = [rate(found["cells"][shown[i]][server]) for i in at]
        spots = [i + (place - (len(servers) - 1) / 2) * width for i in at]
        bars = axes.bar(spots, values, width, label=server, color=colours.get(server, "#1f6f5c"))
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=6)
    axes.set_xticks(range(len(shown)), shown)
    axes.set_ylabel("texts a second")
    axes.set_title(f"MiniLM on sst2 sentences, {THREADS} CPU cores; ours serves {found['file']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def main(arguments: Sequence[str]) -> None:
    """Measure what is not measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn of 3 s a load: under 15 minutes once installed")
    parser.add_argument("--only", metavar="PEER", action="append", help="this peer alone (may be repeated)")
    options = parser.parse_args(arguments)
    require_wrk()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server is left behind
    rounds, seconds = (1, 3.0) if options.quick else (ROUNDS, SECONDS)
    RESULTS.mkdir(parents=True, exist_ok=True)
    model = prepare_model()
    kinds = [our_kind(model), *(kind for kind in PEER_KINDS if not options.only or kind.name in options.only)]
    with tempfile.TemporaryDirectory() as scratch:
        fleet = Fleet(model, Path(scratch))
        try:
            found = measure_all(model, fleet, kinds, rounds, seconds)
        finally:
            fleet.close()
    found |= {
        "date": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[1],
        "rounds": rounds,
        "seconds": seconds,
        "file": model.file.name,
        "missing": fleet.missing,
    }
    name = "quick" if options.quick else "serving"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))
    draw(found, RESULTS / f"{name}.svg")
    print(f"\n{table(found)}\n\nIn full: {RESULTS / name}.json, and a picture beside it")


if __name__ == "__main__":
    main(sys.argv[1:])
