"""How fast a job trains an encoder of BERT-base's shape on a GPU, against transformers' Trainer on the same rows.

The encoder's weights and the texts are random, so nothing is fetched; rows hold half to all of the tokens they may. A
step takes so many tokens, padding included, and the ways take turns in processes of their own; medians count.

  ours              what a worker runs, `ml.training.fit`, in bfloat16
  ours_compiled     the same with training.compile
  trainer           transformers' Trainer, best configured: bfloat16, grouped by length, fused AdamW
  trainer_compiled  the same with torch_compile

With --quick a tiny encoder is trained for a few steps on whatever device there is, to see that all of it runs.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.data import write_parts

RESULTS = Path(__file__).parent / "results" / "training_gpu"
WAYS = ("ours", "ours_compiled", "trainer", "trainer_compiled")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INTERVALS = 4  # a run is timed over all but the first of so many parts: torch loads and compiles in that one

Measured = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """An encoder, and how it is fed."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 30_522
    step_tokens: int = 65_536
    steps: int = 120
    lengths: tuple[int, ...] = (128, 512)
    ways: tuple[str, ...] = WAYS
    turns: int = 3

    def flops_per_token(self, length: float) -> float:
        """Of training: 6 for each weight outside the embeddings, and attention over `length` tokens."""
        return 12 * self.layers * self.width * (6 * self.width + length)


# torch.compile takes minutes on a CPU, which is where --quick is for.
QUICK = Shape(2, 64, 2, 500, step_tokens=512, steps=8, lengths=(32,), ways=("ours", "trainer"), turns=1)


# ------------------------------------------------------------------------------------------------- one run, in a child


def write_base(folder: Path, shape: Shape, length: int) -> Path:
    """A base model with random weights whose tokens are whole words: w5, w6, …"""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=max(length, 512),
    )
    BertModel(config).save_pretrained(folder)
    ids = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(5, shape.vocabulary))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{mark[1:-1].lower()}_token": mark for mark in SPECIAL}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def draw_rows(shape: Shape, length: int) -> list[tuple[str, str]]:
    """Random words and labels, as many rows as the steps take."""
    chance = random.Random(0)
    words = [f"w{i}" for i in range(5, shape.vocabulary)]
    count = shape.steps * (shape.step_tokens // length)
    return [
        (" ".join(chance.choices(words, k=chance.randint(length // 2, length) - 2)), chance.choice("ab"))
        for _ in range(count)
    ]


def measure_ours(base: Path, shape: Shape, length: int, *, is_compiled: bool) -> Measured:
    """Real tokens, and the seconds they took."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ml.training import fit
    from ml.training.machine import look_around
    from ml.training.prepare import prepare
    from ml.training.run import Placement, RunDirectory

    disable_progress_bar()
    fit.POINTS_PER_SERIES = INTERVALS  # where a run is told, the device is waited for
    run = RunDirectory(base.parent / "run")
    run.path.mkdir()
    write_parts(run.path / "data.csv", {"train": draw_rows(shape, length)})
    spec = {
        "dataset": "ds",
        "model": "random",
        "loss": "cross_entropy",
        "split": {"validation": 0, "test": 0},
        "evaluation": {"calibrate": None},
        "training": {
            "epochs": 1,
            "batch_size": shape.step_tokens // length,
            "max_length": length,
            "compile": is_compiled,
            "optimizer": {"type": "adamw", "learning_rate": 3e-5},
            "checkpoint_every_seconds": 86_400,
        },
    }
    (run.path / "spec.json").write_text(json.dumps(spec))
    placement = Placement(base_models={"random": base})
    prepared = prepare(run, placement)
    machine = look_around(prepared.spec.training, placement, prepared.tokens_that_fit)
    torch.set_num_threads(machine.threads)
    seen: list[tuple[float, float]] = []  # when, and tokens a second since the last time

    def tell(kind: str, _message: str, data: Measured | None = None, **_: Any) -> None:
        if kind == "metrics":
            assert data is not None
            seen.append((time.monotonic(), data["values"]["train/tokens_per_second"]))

    run.tell = tell  # type: ignore[method-assign]
    fit.fit(run, prepared, machine, {}, lambda: False)
    seen = seen[1:]  # step 1
    seconds = seen[-1][0] - seen[0][0]
    tokens = sum(rate * (at - before) for (before, _), (at, rate) in pairwise(seen))
    return {"tokens": tokens, "seconds": seconds, "precision": machine.precision}


def measure_trainer(base: Path, shape: Shape, length: int, *, is_compiled: bool) -> Measured:
    """The same of the Trainer."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(base)
    texts, labels = zip(*draw_rows(shape, length), strict=True)
    ids = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    rows = [
        {"input_ids": each, "attention_mask": [1] * len(each), "labels": "ab".index(label)}
        for each, label in zip(ids, labels, strict=True)
    ]
    collate, real = DataCollatorWithPadding(tokenizer), []
    marks: list[tuple[int, float]] = []  # a step, and when it was done

    def counted(some: Any) -> Any:
        batch = collate(some)
        real.append(int(batch["attention_mask"].sum()))
        return batch

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Waits for the device where ours does."""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step % (shape.steps // INTERVALS) == 0:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                marks.append((state.global_step, time.monotonic()))

    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=2),
        args=TrainingArguments(
            output_dir=str(base.parent / "trainer"),
            num_train_epochs=1,
            per_device_train_batch_size=shape.step_tokens // length,
            learning_rate=3e-5,
            weight_decay=0.01,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            tf32=torch.cuda.is_available() or None,
            torch_compile=is_compiled,
            optim="adamw_torch_fused",
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=counted,
        callbacks=[Clock()],
    )
    trainer.train()
    (first, begun), (last, ended) = marks[0], marks[-1]
    return {"tokens": sum(real[first:last]), "seconds": ended - begun, "precision": "bfloat16"}


def measure(asked: Measured) -> Measured:
    """One measurement, in this process."""
    import torch

    shape = Shape(**asked["shape"])
    way = measure_ours if asked["way"].startswith("ours") else measure_trainer
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base", shape, asked["length"])
        measured = way(base, shape, asked["length"], is_compiled=asked["way"].endswith("_compiled"))
    if torch.cuda.is_available():
        measured["peak_bytes"] = torch.cuda.max_memory_allocated()
    return measured


def gemm_flops(shape: Shape) -> Measured:
    """Products of the encoder's own widest shape in bfloat16, per second: the limit of what it can do here."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(shape.step_tokens, shape.width, dtype=torch.bfloat16, device=device)
    right = torch.randn(shape.width, 4 * shape.width, dtype=torch.bfloat16, device=device)

    def seconds(products: int) -> float:
        started = time.perf_counter()
        for _ in range(products):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / products

    seconds(10)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    best = statistics.median(seconds(20) for _ in range(5))
    return {"device": name, "flops": 8 * shape.step_tokens * shape.width**2 / best}


# ---------------------------------------------------------------------------------------------------------- the series


def ask(asked: Measured) -> Measured:
    """A measurement, made in a child."""
    command = [sys.executable, "-m", "benchmarks.training_gpu", "--measure", json.dumps(asked)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        sys.exit(f"{asked} failed:\n{ended.stderr[-3000:]}")
    measured: Measured = json.loads(ended.stdout.splitlines()[-1])
    return measured


def compare(shape: Shape) -> Measured:
    """Every way in turn, at every length."""
    limit = ask({"way": "gemm", "shape": asdict(shape)})
    found: Measured = {"date": time.strftime("%Y-%m-%d"), **limit, "shape": asdict(shape), "lengths": {}}
    for length in shape.lengths:
        runs: dict[str, list[Measured]] = {way: [] for way in shape.ways}
        for turn in range(shape.turns):
            for way, made in runs.items():
                made.append(ask({"way": way, "length": length, "shape": asdict(shape)}))
                speed = made[-1]["tokens"] / made[-1]["seconds"]
                print(f"  length {length}, turn {turn + 1}, {way}: {speed:,.0f} tokens/s", flush=True)
        found["lengths"][length] = {
            way: {
                "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in made),
                "peak_bytes": made[0].get("peak_bytes"),
                "precision": made[0]["precision"],
            }
            for way, made in runs.items()
        }
    return found


def table(found: Measured, shape: Shape) -> str:
    """Everything as Markdown."""
    lines = [
        f"{found['device']}, {found['date']}: {shape.layers} layers, {shape.width} wide, {shape.step_tokens:,} tokens "
        f"a step; the limit is {found['flops'] / 1e12:.3g} TFLOP/s in bfloat16.",
        "",
        "| tokens a row, at most | way | precision | real tokens/s | share of the limit | peak memory | ours is |",
        "|---|---|---|---|---|---|---|",
    ]
    for length, ways in found["lengths"].items():
        for way, run in ways.items():
            speed = run["tokens_per_second"]
            share = speed * shape.flops_per_token(0.75 * length) / found["flops"]
            peak = f"{run['peak_bytes'] / 2**30:.1f} GiB" if run["peak_bytes"] else ""
            times = ways["ours"]["tokens_per_second"] / speed
            lines.append(
                f"| {length} | {way} | {run['precision']} | {speed:,.0f} | {share:.0%} | {peak} | {times:.2f}× |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny encoder, for a few steps, on a CPU as well")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        asked = json.loads(options.measure)
        print(json.dumps(gemm_flops(Shape(**asked["shape"])) if asked["way"] == "gemm" else measure(asked)))
        return
    if not options.quick and not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use. `python -m benchmarks.training_gpu --quick` runs on a CPU.")
    shape = QUICK if options.quick else Shape()
    found = compare(shape)
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{'quick' if options.quick else 'training_gpu'}.json"
    file.write_text(json.dumps(found, indent=1))
    print(f"\n{table(found, shape)}\n\nIn full: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
