"""The loop: what it tells, when it stops, which weights it ends with."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ml.data.splits import Part
from ml.models.layers import part_of
from ml.training import fit as module
from ml.training.errors import NonFiniteLossError, StoppedError
from ml.training.fit import Fitted
from ml.training.machine import Machine
from ml.training.prepare import Prepared, logits_of
from ml.training.run import RunDirectory
from tests.ml.runs import MACHINE, fit_run, lay_out, prepare_run, read_events, series, stop_after, weights_sha256
from tests.tiny_base import LABEL_WORDS, learnable_rows


def train(folder: Path, base: Path, **options: Any) -> tuple[RunDirectory, Prepared, Fitted]:
    run = lay_out(folder, **options)
    prepared = prepare_run(run, base)
    return run, prepared, fit_run(run, prepared)


@pytest.mark.parametrize(
    "loss", ["focal", {"type": "cross_entropy", "label_smoothing": 0.1, "class_weights": "balanced"}], ids=str
)
def test_three_steps_have_the_same_losses_however_they_are_cut(tmp_path: Path, tiny_base: Path, loss: Any) -> None:
    whole, cut = (
        train(
            tmp_path / str(rows),
            tiny_base,
            loss=loss,
            training={"batch_size": 16, "max_steps": 3, "micro_batch_rows": rows, "dropout": 0.0},
        )[0]
        for rows in (None, 5)
    )
    for name in ("train/loss", "train/grad_norm"):
        assert list(series(whole, name)) == [1, 2, 3]
        assert series(cut, name) == pytest.approx(series(whole, name), rel=1e-5)
    assert series(cut, "train/padding_share") != series(whole, "train/padding_share")


@pytest.mark.parametrize(
    ("tuning", "kind", "rate"),
    [
        ("frozen", "adamw", 0.1),
        ("full", "adamw", 3e-3),
        ("full", "sgd", 0.1),
        ("full", "adam", 3e-3),
        ("full", "adamax", 5e-3),
        ("full", "adafactor", 2e-2),
        ("full", "lamb", 1e-2),
        ("full", "lion", 5e-4),
    ],
)
def test_what_can_be_learned_is_learned(tmp_path: Path, tiny_base: Path, tuning: str, kind: str, rate: float) -> None:
    rows = [(f"{a} {b}", label) for label, words in LABEL_WORDS.items() for a in words[:8] for b in words[:7] if a != b]
    training = {"epochs": 10, "optimizer": {"type": kind, "learning_rate": rate}}
    run, prepared, fitted = train(tmp_path, tiny_base, rows=rows[:150], training=training, tuning={"type": tuning})
    assert fitted.metrics["test"]["accuracy"] >= 0.8
    assert set(fitted.report["labels"]) == {"delivery", "other", "refund"}
    assert sum(row["rows"] for row in fitted.report["labels"].values()) == len(prepared.rows_of(Part.TEST)) == 15
    losses = series(run, "train/loss")
    assert losses[fitted.steps] < losses[1] / 2


def test_the_same_spec_gives_the_same_weights_and_another_seed_others(tmp_path: Path, tiny_base: Path) -> None:
    digests = [
        weights_sha256(train(tmp_path / name, tiny_base, training={"epochs": 1, "seed": seed})[1].network)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_frozen_training_leaves_the_encoder_as_it_was(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path, tuning={"type": "frozen"})
    prepared = prepare_run(run, tiny_base)
    assert prepared.encoder is not None
    before = weights_sha256(prepared.encoder)
    fit_run(run, prepared)
    assert weights_sha256(prepared.encoder) == before
    encoded = [event["data"]["encoded"] for event in read_events(run, "progress") if event["message"] == "encoding"]
    assert encoded[-1] == 60


def test_frozen_parts_stay_as_they_were_and_the_others_learn(tmp_path: Path, tiny_base: Path) -> None:
    tuning = {"type": "full", "freeze": ["embeddings", "layer.0", "layer.1"]}
    decaying = {"type": "adamw", "learning_rate": 0.01, "weight_decay": 0.5}
    run = lay_out(tmp_path, tuning=tuning, training={"epochs": 1, "optimizer": decaying})
    prepared = prepare_run(run, tiny_base)
    before = {name: p.detach().clone() for name, p in prepared.network.named_parameters()}
    fit_run(run, prepared)
    for name, parameter in prepared.network.named_parameters():
        assert torch.equal(parameter, before[name]) == (part_of(name) is not None), name


def test_frozen_embeddings_can_still_be_attacked(tmp_path: Path, tiny_base: Path) -> None:
    terms = {"terms": [{"loss": "cross_entropy"}, {"loss": {"type": "fgm", "epsilon": 2.0}}]}
    tuning = {"type": "full", "freeze": ["embeddings"]}
    run, _, _ = train(tmp_path, tiny_base, tuning=tuning, loss=terms, training={"max_steps": 3, "dropout": 0.0})
    plain, attacked = (series(run, f"train/loss/{name}") for name in ("cross_entropy", "fgm"))
    assert all(attacked[step] > plain[step] for step in plain)


def test_training_ends_at_max_steps_amid_an_epoch(tmp_path: Path, tiny_base: Path) -> None:
    run, _, fitted = train(tmp_path, tiny_base, training={"max_steps": 8})
    assert fitted.steps == 8
    assert list(series(run, "train/loss")) == list(range(1, 9))
    assert list(series(run, "validation/loss")) == [6, 8]
    last = read_events(run, "progress")[-1]["data"]
    assert (last["step"], last["steps"], last["eta_seconds"]) == (8, 8, 0)


def test_the_learning_rate_follows_the_schedule(tmp_path: Path, tiny_base: Path) -> None:
    training = {"epochs": 1, "optimizer": {"type": "adamw", "learning_rate": 0.006}, "schedule": {"warmup": 0.0}}
    run, _, _ = train(tmp_path, tiny_base, training=training)
    rates = [0.006, 0.005, 0.004, 0.003, 0.002, 0.001]
    assert list(series(run, "train/learning_rate").values()) == pytest.approx(rates)


def test_parts_without_rows_are_not_measured(tmp_path: Path, tiny_base: Path) -> None:
    run, _, fitted = train(tmp_path, tiny_base, split={"validation": 0, "test": 0}, training={"epochs": 1})
    assert (fitted.metrics, fitted.report) == ({}, {})
    assert series(run, "validation/loss") == {}


def test_early_stopping_ends_with_the_best_weights(tmp_path: Path, tiny_base: Path) -> None:
    # Random labels: what is learned is wrong for validation, which gets worse and worse.
    rows = [(text, "xy"[i // 2 % 2]) for i, (text, _) in enumerate(learnable_rows(80))]
    training = {
        "epochs": 20,
        "dropout": 0.0,
        "schedule": {"type": "constant"},
        "optimizer": {"type": "adamw", "learning_rate": 0.005},
        "early_stopping": {"metric": "loss", "patience": 2},
    }
    run, prepared, fitted = train(tmp_path, tiny_base, rows=rows, training=training)
    losses = series(run, "validation/loss")
    best = min(losses, key=losses.__getitem__)
    assert fitted.steps == best + 2 * 8 < 20 * 8
    assert losses[fitted.steps] > losses[best] + 0.01
    measured = prepared.task.evaluate(
        logits_of(prepared.network, prepared.tokens, prepared.rows_of(Part.VALIDATION), MACHINE),
        prepared.targets.labels.numpy()[prepared.rows_of(Part.VALIDATION)],
    )
    assert measured["loss"] == pytest.approx(losses[best], rel=1e-6)
    assert fitted.metrics["validation"]["loss"] <= measured["loss"]  # a temperature was fitted since
    assert any(
        "stopped early" in event["message"] and f"since step {best}" in event["message"]
        for event in read_events(run, "message")
    )


def test_a_loss_that_is_not_a_number_names_the_step_and_the_way_out(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path)
    prepared = prepare_run(run, tiny_base)
    with torch.no_grad():
        prepared.network.model.classifier.bias[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"became nan .* at step 1, in cross_entropy\. Lower .*learning_rate"):
        fit_run(run, prepared)


def test_a_run_that_diverges_is_ended_at_the_step_where_it_does(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path, training={"optimizer": {"type": "sgd", "learning_rate": 1e9}})
    prepared = prepare_run(run, tiny_base)
    with pytest.raises(NonFiniteLossError) as caught:
        fit_run(run, prepared)
    (step,) = re.findall(r"at step (\d+), in cross_entropy\.", str(caught.value))
    assert int(step) == max(series(run, "train/loss")) + 1 > 1


def test_an_asynchronous_run_is_read_where_it_is_told_and_ends_as_any_other(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POINTS_PER_SERIES", 3)
    monkeypatch.setattr(module, "PROGRESS_EVERY_SECONDS", 1e9)
    read = module._Loop.read
    ends, steps_read = [], []
    for is_asynchronous in (False, True):
        waiting: list[int] = []
        monkeypatch.setattr(Machine, "is_asynchronous", is_asynchronous)
        monkeypatch.setattr(
            module._Loop, "read", lambda loop, waiting=waiting: (waiting.append(len(loop.unread)), read(loop))
        )
        run, prepared, _ = train(tmp_path / str(is_asynchronous), tiny_base)
        ends.append((weights_sha256(prepared.network), series(run, "train/loss")))
        steps_read.append([steps for steps in waiting if steps])
    assert ends[0] == ends[1]
    assert steps_read == [[1] * 18, [1, 5, 6, 6]]


def test_an_asynchronous_run_that_diverges_names_the_step_where_it_did(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for is_asynchronous in (False, True):
        monkeypatch.setattr(Machine, "is_asynchronous", is_asynchronous)
        training = {"optimizer": {"type": "sgd", "learning_rate": 1e9}, "epochs": 100}
        run = lay_out(tmp_path / str(is_asynchronous), training=training)
        with pytest.raises(NonFiniteLossError) as caught:
            fit_run(run, prepare_run(run, tiny_base))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_no_checkpoint_is_written_of_a_run_that_diverged(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "is_asynchronous", True)
    diverging = {"optimizer": {"type": "sgd", "learning_rate": 1e9}, "checkpoint_every_seconds": 0}
    run = lay_out(tmp_path, training=diverging, split={"validation": 0, "test": 0})
    with pytest.raises(NonFiniteLossError) as caught:
        fit_run(run, prepare_run(run, tiny_base))
    (step,) = re.findall(r"at step (\d+)", str(caught.value))
    kept = sorted(folder.name for folder in run.checkpoints.iterdir())
    assert kept[-1] == f"step-{int(step) - 1:08d}"


def test_a_model_whose_answers_are_not_finite_ends_the_run_before_they_are_measured(
    tmp_path: Path, tiny_base: Path
) -> None:
    run = lay_out(tmp_path, training={"max_steps": 2})
    prepared = prepare_run(run, tiny_base)
    asked = []

    def spoil_after_the_last_step() -> bool:
        asked.append(True)
        if len(asked) == 3:
            with torch.no_grad():
                prepared.network.model.classifier.bias[0] = float("inf")
        return False

    with pytest.raises(NonFiniteLossError, match=r"after step 2\. Lower .*learning_rate"):
        fit_run(run, prepared, spoil_after_the_last_step)


def test_a_stop_while_texts_are_encoded_ends_the_run_at_once(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path, tuning={"type": "frozen"})
    with pytest.raises(StoppedError, match="while encoding"):
        fit_run(run, prepare_run(run, tiny_base), lambda: True)


def test_a_stop_is_heard_after_the_step_it_came_in(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path)
    with pytest.raises(StoppedError, match="stopped at step 3"):
        fit_run(run, prepare_run(run, tiny_base), stop_after(run, 3))
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000003"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_weighted_loss_is_the_same_on_a_gpu(tmp_path: Path, tiny_base: Path) -> None:
    weighted = {"loss": {"type": "cross_entropy", "class_weights": "balanced"}, "training": {"dropout": 0.0}}
    here, _, _ = train(tmp_path / "cpu", tiny_base, **weighted)
    there = lay_out(tmp_path / "cuda", **weighted)
    fit_run(there, prepare_run(there, tiny_base), machine=replace(MACHINE, device="cuda"))
    assert series(there, "train/loss")[1] == pytest.approx(series(here, "train/loss")[1], rel=1e-4)
