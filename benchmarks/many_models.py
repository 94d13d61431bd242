"""What many classifiers cost: a thousand heads over one encoder against one of them alone, and fully tuned ones.

Heads are drawn at random, as what they answer takes the same time whatever it says, and written as a job's are. Each
client asks for one text, and for the next once it is answered. One head and all of them take turns in this process,
without HTTP, which adds the same to both. Fully tuned models are copies of one in folders of their own.
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.serving import middle
from ml.artifact.description import HEAD, ONNX, PROBE_TEXTS, Description, Probe, read_description, write_description
from ml.artifact.manifest import MANIFEST, folder_bytes, publish_folder, read_manifest
from ml.inference.backends import OnnxBackend
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier
from ml.inference.scheduler import Answer, Scheduler

RESULTS = Path(__file__).parent / "results" / "many_models"
EXAMPLE = Path(__file__).parents[1] / "examples" / "support.csv"
HEADS, MOST_LABELS, CLIENTS, THREADS = 1_000, 16, 64, 2
ROUNDS, SECONDS = 5, 10.0
TUNED = (1, 10, 100)
ROOM = 10**12  # bytes: nothing is dropped
LEAST_RATIO, MOST_BYTES = 0.8, 50_000

Body = dict[str, Any]


def train(folder: Path, tuning: str) -> Path:
    """The run directory of a short training on the example data."""
    run = folder / tuning
    run.mkdir()
    (run / "data.csv").write_bytes(EXAMPLE.read_bytes())
    spec = {"dataset": "ds_1", "tuning": tuning, "training": {"max_steps": 1}}
    (run / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-P", "-m", "ml.training", str(run)], check=True)
    return run


def write_heads(folder: Path, run: Path, count: int) -> list[Path]:
    """Artifacts of random heads over a run's encoder, with 2 to 16 labels."""
    described = read_description(run / "artifact")
    encoder = OnnxClassifier(run / "artifact", run / "base", OnnxBackend(run / "base" / ONNX, 1))
    vectors = np.concatenate([encoder.encode([each]) for each in encoder.tokenize(PROBE_TEXTS)])
    return [
        _write_head(folder / str(number), described, vectors, 2 + number % (MOST_LABELS - 1), number)
        for number in range(count)
    ]


def _write_head(folder: Path, described: Description, vectors: NDArray[np.float32], labels: int, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    weight = draw.normal(size=(labels, vectors.shape[1])).astype(np.float32)
    bias = draw.normal(size=labels).astype(np.float32)
    names = [f"label {number}" for number in range(labels)]
    copy = described.model_copy(
        update={
            "task": described.task.model_copy(update={"labels": names}),
            "probe": Probe(logits=(vectors @ weight.T + bias).tolist(), tolerance=1e-3),
        }
    )
    with publish_folder(folder, "artifact", {}) as temporary:
        write_description(temporary, copy)
        save_file({"weight": weight, "bias": bias}, temporary / HEAD)
    return folder


def measure_loads(folders: Sequence[tuple[Path, Path]]) -> tuple[list[OnnxClassifier], ModelCache, list[Body]]:
    """Load models one after the other: of each its seconds and how many bytes more the process then has."""
    cache, process, loads, loaded = ModelCache(ROOM, THREADS), psutil.Process(), [], []
    for number, pair in enumerate(folders):
        before, begun = process.memory_full_info().uss, time.perf_counter()
        loaded.append(cache.get(str(number), lambda pair=pair: pair))  # type: ignore[misc]
        loads.append({"seconds": time.perf_counter() - begun, "bytes": process.memory_full_info().uss - before})
    return loaded, cache, loads


def drive(cache: ModelCache, models: int, texts: Sequence[str], seconds: float) -> float:
    """Texts a second of clients that share their requests out evenly over so many models."""
    scheduler, ended = Scheduler(2_048, THREADS), SimpleQueue[tuple[OnnxClassifier, Any]]()
    asked = done = 0

    def ask() -> None:
        nonlocal asked
        classifier = cache.peek(str(asked % models))
        assert classifier is not None
        future = scheduler.submit(classifier, classifier.tokenize([texts[asked % len(texts)]]))
        future.add_done_callback(lambda it: ended.put((classifier, it)))
        asked += 1

    try:
        for _ in range(CLIENTS):
            ask()
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            classifier, future = ended.get()
            answer: Answer = future.result()
            classifier.task.decode(classifier.read(answer.outputs))
            done += 1
            ask()
        return done / passed
    finally:
        scheduler.close()


def measure_heads(folder: Path, heads: int, rounds: int, seconds: float) -> Body:
    """All heads against one of them."""
    run = train(folder, "frozen")
    artifacts = write_heads(folder, run, heads)
    _, cache, loads = measure_loads([(artifact, run / "base") for artifact in artifacts])
    with EXAMPLE.open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    random.Random(17).shuffle(texts)
    drive(cache, heads, texts, min(seconds, 2.0))  # warms up
    turns = []
    for turn in range(rounds):
        order = [("one", 1), ("all", heads)][:: 1 if turn % 2 else -1]
        turns.append({name: drive(cache, models, texts, seconds) for name, models in order})
    disk = [folder_bytes(read_manifest(one)) + (one / MANIFEST).stat().st_size for one in artifacts]
    return {
        "heads": heads,
        "texts_per_second": middle(turns),
        "ratio": statistics.median(turn["all"] / turn["one"] for turn in turns),
        "first_load_seconds": loads[0]["seconds"],
        "other_loads_seconds": sum(load["seconds"] for load in loads[1:]),
        "memory_bytes_each": sum(load["bytes"] for load in loads[1:]) / (heads - 1),
        "disk_bytes_most": max(disk),
    }


def measure_tuned(folder: Path, counts: Sequence[int]) -> Body:
    """The cost of the first, the tenth, … of models that trained their encoders."""
    run = train(folder, "full")
    copies = [folder / f"tuned-{number}" for number in range(max(counts))]
    for copy in copies:  # of links: a folder of its own takes a session of its own, and no room
        copy.mkdir()
        for file in (run / "artifact").iterdir():
            os.link(file, copy / file.name)
    _, _, loads = measure_loads([(copy, copy) for copy in copies])
    return {str(count): loads[count - 1] for count in counts}


def show(found: Body) -> None:
    """Print the table."""
    heads = found["heads"]
    rates = heads["texts_per_second"]
    print(f"one head {rates['one']:.0f} texts/s, {heads['heads']} heads {rates['all']:.0f} texts/s")
    print(f"ratio {heads['ratio']:.1%} (at least {LEAST_RATIO:.0%})")
    print(f"loading: the first {heads['first_load_seconds']:.2f} s, the others {heads['other_loads_seconds']:.2f} s")
    print(
        f"a head: {heads['memory_bytes_each'] / 1000:.0f} KB of memory, at most {heads['disk_bytes_most'] / 1000:.0f} "
        f"KB on the disk (at most {MOST_BYTES // 1000})"
    )
    for count, load in found["tuned"].items():
        print(f"fully tuned model {count}: {load['bytes'] / 1e6:.0f} MB, {load['seconds']:.2f} s")
    print(f"load average {found['load_average']:.1f}")


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns of 3 s, and ten fully tuned models")
    options = parser.parse_args(arguments)
    rounds, seconds, tuned = (2, 3.0, TUNED[:2]) if options.quick else (ROUNDS, SECONDS, TUNED)
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            "heads": measure_heads(Path(scratch), HEADS, rounds, seconds),
            "tuned": measure_tuned(Path(scratch), tuned),
            "load_average": os.getloadavg()[1],
        }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / ("quick.json" if options.quick else "many_models.json")).write_text(json.dumps(found, indent=1))
    show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
