"""What the losses' papers claim, tried on small real datasets: each experiment is one comparison over 5 paired seeds.

It may be stopped at any time and goes on where it was: each experiment is a run directory of `python -m ml.training`.
MiniLM, at most 1,500 training rows an arm: all parameters trained for a few epochs, and a head over the frozen encoder.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.data import read_rows, write_parts
from ml.training.report import ArmReport, ComparisonReport, Figure

RESULTS = Path(__file__).parent / "results" / "losses"
SEEDS = 5
TRAIN_ROWS = 1_500
SST5_LEVELS = ["1_very_negative", "2_negative", "3_neutral", "4_positive", "5_very_positive"]

Rows = list[tuple[str, Any]]
Parts = dict[str, Rows]


@dataclass(frozen=True)
class Experiment:
    """A claim, and how it is tried."""

    claim: str
    write: Callable[[random.Random], Parts]
    spec: dict[str, Any]


def _draw(draw: random.Random, dataset: str, part: str, rows: int) -> Rows:
    found = [(row["text"], row["labels"] if "labels" in row else row["label"]) for row in read_rows(dataset, part)]
    return draw.sample(found, min(rows, len(found)))


def _imbalanced(draw: random.Random) -> Parts:
    """ag_news with four classes from 800 rows down to 16; validation as imbalanced, the test balanced."""
    by_label: dict[str, Rows] = {}
    for text, label in _draw(draw, "ag_news", "train", 6_000):
        by_label.setdefault(label, []).append((text, label))
    parts: Parts = {"train": [], "validation": [], "test": _draw(draw, "ag_news", "test", 1_000)}
    for place, label in enumerate(sorted(by_label)):
        count = round(800 / 50 ** (place / 3))
        parts["train"] += by_label[label][:count]
        parts["validation"] += by_label[label][count : count + max(3, count // 10)]
    return parts


def _noisy(draw: random.Random) -> Parts:
    """trec with two labels in five replaced by another class, drawn uniformly; the test is clean."""
    rows = _draw(draw, "trec", "train", 700)
    labels = sorted({label for _, label in rows})

    def spoil(label: str) -> str:
        return draw.choice([other for other in labels if other != label]) if draw.random() < 0.4 else label

    noisy = [(text, spoil(label)) for text, label in rows]
    return {"train": noisy[:600], "validation": noisy[600:], "test": _draw(draw, "trec", "test", 500)}


def _plain(dataset: str, validation: str, validation_rows: int, test_rows: int) -> Callable[[random.Random], Parts]:
    """A dataset as it is, cut down."""

    def write(draw: random.Random) -> Parts:
        train = _draw(draw, dataset, "train", TRAIN_ROWS + validation_rows)
        held = train[TRAIN_ROWS:] if validation == "train" else _draw(draw, dataset, validation, validation_rows)
        test = _draw(draw, dataset, "test", test_rows)
        return {"train": train[:TRAIN_ROWS], "validation": held, "test": test}

    return write


EXPERIMENTS = {
    "imbalance": Experiment(
        "logit_adjusted has a higher macro-F1 than cross_entropy where classes are 50 to 1 (ag_news, balanced test)",
        _imbalanced,
        {"losses": ["cross_entropy", "logit_adjusted"], "metric": "macro_f1", "training": {"epochs": 3}},
    ),
    "ordinal": Experiment(
        "corn has a lower mean absolute error than cross_entropy on ordered labels (sst5)",
        _plain("sst5", "dev", 300, 1_000),
        {
            "losses": ["cross_entropy", "corn"],
            "metric": "mae",
            "task": {"type": "ordinal", "labels": SST5_LEVELS},
            "training": {"epochs": 3},
        },
    ),
    "multi_label": Experiment(
        "asl and zlpr have a higher macro-F1 than bce on many rare labels (goemotions)",
        _plain("goemotions", "train", 500, 1_000),
        {
            "losses": ["bce", "asl", "zlpr"],
            "metric": "macro_f1",
            "task": {"type": "multi_label"},
            "training": {"epochs": 4},
        },
    ),
    "noise": Experiment(
        "gce and sce are more accurate than cross_entropy where 40% of the labels are wrong (trec, 10 epochs)",
        _noisy,
        {"losses": ["cross_entropy", "gce", "sce"], "metric": "accuracy", "training": {"epochs": 10}},
    ),
}

# The same once more over a frozen encoder, where a head is trained to its end within a minute.
FROZEN = "_frozen"
EXPERIMENTS |= {
    f"{name}{FROZEN}": replace(one, spec={**one.spec, "tuning": "frozen", "training": {"epochs": 40}})
    for name, one in EXPERIMENTS.items()
}


def lay_out(name: str, experiment: Experiment, threads: int) -> Path:
    """The run directory of an experiment: data, spec, where it is not there yet."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    training = {**experiment.spec["training"], "batch_size": 32, "checkpoint_every_seconds": 600}
    spec = {"dataset": name, "seeds": SEEDS, **experiment.spec, "training": training}
    written = json.dumps(spec, indent=1)
    file = folder / "spec.json"
    if not file.exists() or file.read_text() != written:
        shutil.rmtree(folder)
        folder.mkdir()
        parts = experiment.write(random.Random(name.removesuffix(FROZEN)))
        write_parts(folder / "data.csv", parts)
        counts = {
            part: dict(Counter(map(str, (label for _, label in rows))).most_common(8)) for part, rows in parts.items()
        }
        (folder / "counts.json").write_text(json.dumps(counts, indent=1))
        file.write_text(written)
    (folder / "run.json").write_text(json.dumps({"kind": "comparison", "threads": threads}))
    return folder


def carry_out(folder: Path) -> ComparisonReport:
    """Run an experiment to its end, showing each run as it is finished."""
    result = folder / "result.json"
    if not result.exists():
        shown = 0
        with (folder / "log.txt").open("ab") as log:
            child = subprocess.Popen([sys.executable, "-m", "ml.training", str(folder)], stdout=log, stderr=log)
            try:
                while child.poll() is None:
                    time.sleep(1)
                    shown = _show(folder, shown)
            finally:
                child.terminate()
                child.wait()
        _show(folder, shown)
        if child.returncode:
            sys.exit(f"{folder.name} ended with exit status {child.returncode}: see {folder / 'log.txt'}")
    return ComparisonReport.model_validate_json(result.read_bytes())


def _show(folder: Path, shown: int) -> int:
    """Print the finished runs that were not shown yet."""
    events = folder / "events.jsonl"
    lines = events.read_text().splitlines() if events.exists() else []
    told = [line["message"] for line in map(json.loads, lines) if line["type"] == "metrics"]
    for message in told[shown:]:
        print(f"  {message}", flush=True)
    return len(told)


def table(reports: dict[str, ComparisonReport]) -> str:
    """All experiments as one Markdown table."""
    lines = [
        "| data | loss | metric | mean ± deviation | against the first: difference [95% interval] | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        where = f"{name}: {report.train_rows:,} train, {report.rows:,} {report.part}"
        for place, arm in enumerate(report.arms):
            lines.append(f"| {where if not place else ''} | `{arm.id}` | {report.metric} | {_row(arm)} |")
    return "\n".join(lines)


def _row(arm: ArmReport) -> str:
    if arm.value is None:
        return f"failed | | {arm.error}"
    value = _figure(arm.value)
    if before := arm.metrics.get("macro_f1_at_half"):
        value += f" (at 0.5: {_figure(before)})"
    if (found := arm.difference) is None:
        return f"{value} | |"
    interval = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p {found.p_value:.3f}"
    return f"{value} | {interval} | {found.verdict}"


def _figure(figure: Figure) -> str:
    return f"{figure.mean:.4f} ± {figure.std:.4f}"


def calibration_table(reports: dict[str, ComparisonReport]) -> str:
    """What temperature scaling did to every arm that has probabilities."""
    lines = [
        "| data | loss | accuracy before, after | NLL before, after | ECE before, after |",
        "|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        for arm in report.arms:
            if "loss" in arm.metrics and "accuracy" in arm.metrics:
                pairs = [
                    f"{arm.unfitted[metric].mean:.4f}, {arm.metrics[metric].mean:.4f}"
                    for metric in ("accuracy", "loss", "ece")
                ]
                lines.append(f"| {name} | `{arm.id}` | {' | '.join(pairs)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Carry out what is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"experiments; default: all of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--threads", type=int, default=0, help="of the trainer; 0: every core")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(EXPERIMENTS):
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    reports = {}
    for name in options.names or EXPERIMENTS:
        print(f"{name}: {EXPERIMENTS[name].claim}", flush=True)
        reports[name] = carry_out(lay_out(name, EXPERIMENTS[name], options.threads))
        print(f"  {reports[name].conclusion}", flush=True)
    print(f"\n{table(reports)}\n\n{calibration_table(reports)}\n\nIn full: {RESULTS}/*/result.json")


if __name__ == "__main__":
    main(sys.argv[1:])
