"""What many classifiers cost: a thousand heads over one encoder against one of them, 200 LoRA models of one base
against one, and fully tuned ones.

Heads and adapters are drawn at random, as what they answer takes the same time whatever it says, and written as a job's
are; adapters have ranks of 4, 8 and 16. Each client asks for one text, and for the next once it is answered. One model
and all of them take turns in this process, without HTTP, which adds the same to both; in float32 also a LoRA model that
is merged, with a session of its own. Fully tuned models are copies of one in folders of their own.
"""

import argparse
import csv
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.serving import middle
from ml.artifact.description import (
    ADAPTER,
    HEAD,
    INT8,
    ONNX,
    PROBE_TEXTS,
    Description,
    Probe,
    Serving,
    read_description,
    write_description,
)
from ml.artifact.join import join_head
from ml.artifact.manifest import MANIFEST, folder_bytes, publish_folder, read_manifest
from ml.artifact.merge import merge_graph
from ml.artifact.tokenizer import TOKENIZER
from ml.inference.backends import OnnxBackend, OnnxEngine
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier
from ml.inference.scheduler import Answer, Scheduler

RESULTS = Path(__file__).parent / "results" / "many_models"
EXAMPLE = Path(__file__).parents[1] / "examples" / "support.csv"
HEADS, ADAPTERS, MOST_LABELS, CLIENTS, THREADS = 1_000, 200, 16, 64, 2
RANKS = (4, 8, 16)
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


def write_models(folder: Path, run: Path, count: int, kind: Literal["onnx-float32", "onnx-int8"]) -> list[Path]:
    """Artifacts of random heads, and adapters where the run has one, over what it shares; of 2 to 16 labels each."""
    described = read_description(run / "artifact")
    base = run / "base"
    first = OnnxClassifier(run / "artifact", base, OnnxBackend(base / ONNX, 1))
    if kind == "onnx-int8":
        first.session = OnnxBackend(base / INT8, 1)
    described.serving = Serving(format=kind, reason="drawn at random")
    given = {name: tensor[0] for name, tensor in first.adapter.items()}
    adapters = [_draw_adapter(given, seed) for seed in range(count)]
    return [_write_model(folder / str(seed), described, first, adapter, seed) for seed, adapter in enumerate(adapters)]


def _draw_adapter(given: Mapping[str, NDArray[np.float32]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Terms of another rank in the place of those given; what was given whole stays."""
    draw, rank = np.random.default_rng(seed), RANKS[seed % len(RANKS)]
    drawn = dict(given)
    for name, tensor in given.items():
        if name.endswith(("lora_A", "lora_B")):
            drawn[name] = draw.normal(0, 0.02, (rank, tensor.shape[1])).astype(np.float32)
    return drawn


def _write_model(
    folder: Path, described: Description, first: OnnxClassifier, adapter: dict[str, NDArray[np.float32]], seed: int
) -> Path:
    draw, labels = np.random.default_rng(seed), 2 + seed % (MOST_LABELS - 1)
    first.adapter = {name: tensor[None] for name, tensor in adapter.items()}
    vectors = np.concatenate([first.encode([each]) for each in first.tokenize(PROBE_TEXTS)])
    weight = draw.normal(size=(labels, vectors.shape[1])).astype(np.float32)
    bias = draw.normal(size=labels).astype(np.float32)
    logits = (vectors @ weight.T + bias).tolist()
    copy = described.model_copy(
        update={
            "task": described.task.model_copy(update={"labels": [f"label {number}" for number in range(labels)]}),
            "probe": Probe(logits=logits, tolerance=1e-3),
            "int8_probe": logits,
        }
    )
    with publish_folder(folder, "artifact", {}) as temporary:
        write_description(temporary, copy)
        save_file({"weight": weight, "bias": bias}, temporary / HEAD)
        if adapter:
            save_file(adapter, temporary / ADAPTER)
    return folder


def merge(folder: Path, artifact: Path, base: Path) -> Path:
    """An adapter's artifact as one with a session of its own."""
    described = read_description(artifact).model_copy(update={"head": "native", "is_adapted": False})
    with publish_folder(folder, "artifact", {}) as temporary:
        merge_graph(base / ONNX, artifact / ADAPTER, temporary / "merged.onnx")
        join_head(temporary / "merged.onnx", artifact / HEAD, temporary / ONNX, is_cosine=False)
        (temporary / "merged.onnx").unlink()
        (temporary / TOKENIZER).write_bytes((base / TOKENIZER).read_bytes())
        write_description(temporary, described)
    return folder


def measure_loads(folders: Sequence[tuple[Path, Path]]) -> tuple[list[OnnxClassifier], ModelCache, list[Body]]:
    """Load models one after the other: of each its seconds, and how many bytes more the cache then holds.

    What the process holds would tell less: it takes a model's memory from what an earlier one has left.
    """
    cache, loads, loaded = ModelCache(ROOM, OnnxEngine(THREADS)), [], []
    for number, pair in enumerate(folders):
        held, begun = cache.bytes, time.perf_counter()
        loaded.append(cache.get(str(number), lambda pair=pair: pair))  # type: ignore[misc]
        loads.append({"seconds": time.perf_counter() - begun, "bytes": cache.bytes - held})
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


def measure_shared(
    artifacts: Sequence[Path], base: Path, rounds: int, seconds: float, beside: Path | None = None
) -> Body:
    """All models over one network against one of them, and against one `beside` them that has its own."""
    _, cache, loads = measure_loads([(artifact, base) for artifact in artifacts])
    alone = ModelCache(ROOM, OnnxEngine(THREADS))
    if beside is not None:
        alone.get("0", lambda: (beside, beside))
    with EXAMPLE.open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    random.Random(17).shuffle(texts)
    contenders = {"one": (cache, 1), "all": (cache, len(artifacts))} | ({"merged": (alone, 1)} if beside else {})
    drive(cache, len(artifacts), texts, min(seconds, 2.0))  # warms up
    turns = []
    for turn in range(rounds):
        order = list(contenders.items())[:: 1 if turn % 2 else -1]
        turns.append({name: drive(*contender, texts, seconds) for name, contender in order})
    disk = [folder_bytes(read_manifest(one)) + (one / MANIFEST).stat().st_size for one in artifacts]
    others = loads[1:]
    return {
        "models": len(artifacts),
        "texts_per_second": middle(turns),
        "ratio": statistics.median(turn["all"] / turn["one"] for turn in turns),
        "first_load_seconds": loads[0]["seconds"],
        "other_loads_seconds": sum(load["seconds"] for load in others),
        "first_bytes": loads[0]["bytes"],
        "memory_bytes_each": sum(load["bytes"] for load in others) / len(others),
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
    print(f"heads are to have {LEAST_RATIO:.0%} of one's rate, in {MOST_BYTES // 1000} KB each")
    for name in ("heads", "lora, onnx-float32", "lora, onnx-int8"):
        kind = found[name]
        rates = ", ".join(f"{who} {rate:.0f}" for who, rate in kind["texts_per_second"].items())
        print(f"{name}: {kind['models']} models, texts/s: {rates}; all {kind['ratio']:.1%} of one")
        print(
            f"  loading: the first {kind['first_load_seconds']:.2f} s, the others {kind['other_loads_seconds']:.2f} s; "
            f"memory: the first {kind['first_bytes'] / 1e6:.0f} MB, another {kind['memory_bytes_each'] / 1000:.0f} KB "
            f"and on the disk at most {kind['disk_bytes_most'] / 1000:.0f} KB"
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
    found: Body = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = train(folder, "frozen")
        heads = write_models(folder / "heads", run, HEADS, "onnx-float32")
        found["heads"] = measure_shared(heads, run / "base", rounds, seconds)
        run = train(folder, "lora")
        for kind in ("onnx-float32", "onnx-int8"):
            adapted = write_models(folder / kind, run, ADAPTERS, kind)
            merged = merge(folder / "merged", adapted[1], run / "base") if kind == "onnx-float32" else None
            found[f"lora, {kind}"] = measure_shared(adapted, run / "base", rounds, seconds, merged)
            shutil.rmtree(folder / kind)
        found["tuned"] = measure_tuned(folder, tuned)
        found["load_average"] = os.getloadavg()[1]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / ("quick.json" if options.quick else "many_models.json")).write_text(json.dumps(found, indent=1))
    show(found)


if __name__ == "__main__":
    main(sys.argv[1:])
