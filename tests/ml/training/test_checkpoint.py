"""A stopped run goes on as if it had never stopped; a damaged or foreign checkpoint never gets in."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ml.artifact.manifest import MANIFEST, verify_folder
from ml.models.layers import part_of
from ml.specs.errors import SpecError
from ml.training.checkpoint import remembered_machine
from ml.training.errors import StoppedError
from ml.training.fit import Fitted
from ml.training.prepare import Prepared
from ml.training.run import RunDirectory
from tests.ml.runs import (
    MACHINE,
    fit_run,
    flip_a_bit,
    lay_out,
    prepare_run,
    read_events,
    series,
    stop_after,
    weights_sha256,
)

# 48 training rows in steps of 8: 6 steps an epoch, 18 in all. The tiny base drops out 10%.
STEPS, EPOCH = 18, 6
EVERY_STEP: dict[str, Any] = {"checkpoint_every_seconds": 0}
STOPPING_EARLY: dict[str, Any] = {"early_stopping": {"metric": "loss", "patience": 2}}


class Trainer:
    """Trains runs of one kind in folders of their own."""

    def __init__(self, folder: Path, base: Path) -> None:
        self._folder = folder
        self._base = base

    def lay_out(self, name: str, training: dict[str, Any] | None = None, **spec: Any) -> RunDirectory:
        learning = {"optimizer": {"type": "adamw", "learning_rate": 2e-3}, **(training or {})}
        return lay_out(self._folder / name, training=learning, **spec)

    def prepare(self, run: RunDirectory) -> Prepared:
        return prepare_run(run, self._base)

    def train(self, run: RunDirectory, stop: Callable[[], bool] = lambda: False) -> tuple[str, Fitted]:
        """Train anew, or on from the run's checkpoint; return the digest of the final weights and the metrics."""
        prepared = self.prepare(run)
        fitted = fit_run(run, prepared, stop)
        return weights_sha256(prepared.network), fitted

    def train_until(self, run: RunDirectory, step: int) -> None:
        """Train until this step is made and its checkpoint written."""
        with pytest.raises(StoppedError, match=f"step {step}"):
            self.train(run, stop_after(run, step))


@pytest.fixture
def trainer(tmp_path: Path, tiny_base: Path) -> Trainer:
    return Trainer(tmp_path, tiny_base)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[str, Fitted]:
    """How a run with nothing changed ends when it is never stopped."""
    trainer = Trainer(tmp_path_factory.mktemp("never stopped"), tiny_base)
    return trainer.train(trainer.lay_out("whole"))


@pytest.mark.parametrize("tuning", ["full", "frozen"])
@pytest.mark.parametrize("training", [{}, STOPPING_EARLY], ids=["plain", "early stopping"])
def test_a_run_stopped_again_and_again_ends_as_one_that_never_was(
    trainer: Trainer, tuning: str, training: dict[str, Any]
) -> None:
    spec = {"tuning": {"type": tuning}}
    dropout = {"dropout": 0.1} if tuning == "frozen" else {}
    whole = trainer.lay_out("whole", {**training, **dropout}, **spec)
    expected = trainer.train(whole)
    run = trainer.lay_out("stopped", {**training, **dropout}, **spec)
    for step in (1, 4, EPOCH, 15):  # early, amid an epoch, between two, amid the last
        trainer.train_until(run, step)
    assert trainer.train(run) == expected
    assert series(run, "train/loss") == series(whole, "train/loss")
    assert [event["data"]["step"] for event in read_events(run, "status")] == [1, 4, EPOCH, 15]


def test_dropout_was_on_in_these_runs(trainer: Trainer) -> None:
    digests = set()
    for dropout in (0.0, 0.1):
        digests.add(trainer.train(trainer.lay_out(str(dropout), {"epochs": 1, "dropout": dropout}))[0])
    digests.add(trainer.train(trainer.lay_out("as the base has it", {"epochs": 1}))[0])
    assert len(digests) == 2


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "adamax", "adafactor", "lamb", "lion"])
def test_every_optimizer_goes_on_with_its_state(trainer: Trainer, kind: str) -> None:
    optimizer = {"type": kind, "learning_rate": 2e-3, "weight_decay": 0.1, "layer_decay": 0.8}
    training = {"optimizer": optimizer, "schedule": "cosine_restarts", "epochs": 2}
    expected = trainer.train(trainer.lay_out("whole", training))
    run = trainer.lay_out("stopped", training)
    for step in (1, 8):
        trainer.train_until(run, step)
    assert trainer.train(run) == expected


@pytest.mark.parametrize("training", [{}, STOPPING_EARLY], ids=["plain", "early stopping"])
def test_an_average_of_the_weights_goes_on(trainer: Trainer, training: dict[str, Any]) -> None:
    averaging = {**training, "ema_decay": 0.9, "epochs": 4}
    whole = trainer.lay_out("whole", averaging)
    expected = trainer.train(whole)
    run = trainer.lay_out("stopped", averaging)
    for step in (1, EPOCH, 15):
        trainer.train_until(run, step)
    assert trainer.train(run) == expected
    assert series(run, "validation/loss") == series(whole, "validation/loss")


def test_frozen_parts_stay_out_of_a_checkpoint_and_go_on_as_they_were(trainer: Trainer) -> None:
    tuning = {"type": "full", "freeze": ["embeddings", "layer.0"]}
    expected = trainer.train(trainer.lay_out("whole", tuning=tuning))
    run = trainer.lay_out("stopped", tuning=tuning)
    trainer.train_until(run, 7)
    names = load_file(run.checkpoints / "step-00000007" / "model.safetensors")
    assert {part_of(name) for name in names} == {"layer.1", None}
    assert trainer.train(run) == expected


@pytest.mark.parametrize("sampler", ["class_balanced", "m_per_class"])
def test_an_epochs_sample_is_the_same_after_a_stop(trainer: Trainer, sampler: str) -> None:
    digest, _ = trainer.train(trainer.lay_out("whole", {"sampler": sampler}))
    run = trainer.lay_out("stopped", {"sampler": sampler})
    trainer.train_until(run, EPOCH + 2)
    assert trainer.train(run)[0] == digest


def test_sgd_without_momentum_has_nothing_to_keep_and_goes_on(trainer: Trainer) -> None:
    training = {"optimizer": {"type": "sgd", "learning_rate": 0.02, "momentum": 0.0}}
    expected = trainer.train(trainer.lay_out("whole", training))
    run = trainer.lay_out("stopped", training)
    trainer.train_until(run, 7)
    assert trainer.train(run) == expected


def test_patience_and_the_best_weights_so_far_are_kept(trainer: Trainer) -> None:
    # Random labels: validation only gets worse, so the best weights are early ones.
    rows = [(f"{word} {other}", label) for word in "abcdefgh" for other in "ijklmnop" for label in "xy"][:96]
    training = {
        "epochs": 12,
        "optimizer": {"type": "adamw", "learning_rate": 0.02},
        "early_stopping": {"metric": "loss", "patience": 3},
    }
    whole = trainer.lay_out("whole", training, rows=rows)
    expected = trainer.train(whole)
    best = min(series(whole, "validation/loss").items(), key=lambda item: item[1])
    assert best[0] + 3 * 10 == expected[1].steps < 12 * 10
    run = trainer.lay_out("stopped", training, rows=rows)
    trainer.train_until(run, best[0] + 13)
    assert trainer.train(run) == expected


@pytest.mark.parametrize("max_steps", [None, 15])
def test_a_run_killed_after_its_last_step_still_measures_it(trainer: Trainer, max_steps: int | None) -> None:
    slowly = {"optimizer": {"type": "adamw", "learning_rate": 2e-4}, "max_steps": max_steps}
    run = trainer.lay_out("killed", {**EVERY_STEP, **STOPPING_EARLY, **slowly})
    expected = trainer.train(run)
    losses = series(run, "validation/loss")
    assert min(losses, key=losses.__getitem__) == expected[1].steps  # the last weights were the best
    # All that a kill during the export would leave: the checkpoint that was written before the last validation.
    assert trainer.train(run) == expected


@pytest.mark.parametrize("damage", ["a flipped bit", "no manifest", "half a manifest", "a missing file"])
def test_of_damaged_checkpoints_the_one_before_is_taken_and_that_is_said(
    trainer: Trainer, damage: str, expected: tuple[str, Fitted]
) -> None:
    run = trainer.lay_out("damaged", EVERY_STEP)
    trainer.train_until(run, 5)
    newest = run.checkpoints / "step-00000005"
    if damage == "a flipped bit":
        flip_a_bit(newest / "model.safetensors")
    elif damage == "no manifest":
        (newest / MANIFEST).unlink()
    elif damage == "half a manifest":
        (newest / MANIFEST).write_bytes((newest / MANIFEST).read_bytes()[:100])
    else:
        (newest / "optimizer.safetensors").unlink()
    trainer.train_until(run, 5 + 1)
    (warning,) = [event for event in read_events(run, "message") if event["level"] == "warning"]
    assert "checkpoint refused: step-00000005" in warning["message"]
    assert [event["data"]["step"] for event in read_events(run, "status")] == [4]
    verify_folder(newest)  # written anew on the way
    assert trainer.train(run)[0] == expected[0]


def test_where_every_checkpoint_is_damaged_the_run_begins_anew(trainer: Trainer, expected: tuple[str, Fitted]) -> None:
    run = trainer.lay_out("damaged", EVERY_STEP)
    trainer.train_until(run, 5)
    for folder in run.checkpoints.iterdir():
        flip_a_bit(folder / "optimizer.safetensors")
    trainer.train_until(run, 1)
    verify_folder(run.checkpoints / "step-00000001")
    assert trainer.train(run) == expected


@pytest.mark.parametrize(
    "change", [{"training": {"seed": 18}}, {"loss": "focal"}, {"training": {"micro_batch_rows": 4}}], ids=str
)
def test_a_checkpoint_of_another_spec_is_refused(trainer: Trainer, change: dict[str, Any]) -> None:
    run = trainer.lay_out("run")
    trainer.train_until(run, 2)
    other = trainer.lay_out("run", **change)
    with pytest.raises(SpecError, match="step-00000002 is from a run with another spec") as caught:
        trainer.train(other)
    assert caught.value.problems[0].code == "foreign_checkpoint"


def test_another_machine_goes_on_and_says_that_the_bits_may_differ(trainer: Trainer) -> None:
    run = trainer.lay_out("run")
    trainer.train_until(run, 2)
    fit_run(run, trainer.prepare(run), machine=replace(MACHINE, micro_batch_tokens=100))
    assert read_events(run, "status")[0]["data"]["step"] == 2
    (warning,) = [event["message"] for event in read_events(run, "message") if event["level"] == "warning"]
    assert "another machine" in warning


def test_a_resumed_run_uses_its_machine_as_before_unless_nothing_tells_how(trainer: Trainer, tmp_path: Path) -> None:
    run = trainer.lay_out("run")
    trainer.train_until(run, 2)
    assert remembered_machine(run.checkpoints) == MACHINE.as_dict()
    (run.checkpoints / "step-00000002" / MANIFEST).unlink()
    assert remembered_machine(run.checkpoints) is None
    assert remembered_machine(tmp_path / "nowhere") is None


def test_only_the_newest_checkpoints_are_kept(trainer: Trainer) -> None:
    run = trainer.lay_out("run", EVERY_STEP)
    trainer.train_until(run, 7)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [f"step-0000000{step}" for step in (5, 6, 7)]


def test_a_checkpoint_is_safetensors_and_json_and_holds_all_it_needs(trainer: Trainer) -> None:
    run = trainer.lay_out("run", STOPPING_EARLY)
    trainer.train_until(run, 8)
    folder = run.checkpoints / "step-00000008"
    manifest = verify_folder(folder)
    assert manifest["step"] == 8
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            load_file(path)
        else:
            assert path.suffix == ".json"
            json.loads(path.read_bytes())
    tensors = {f"{name}.safetensors" for name in ("model", "best", "objective", "optimizer", "rng")}
    assert set(manifest["files"]) == {*tensors, "config.json", "tokenizer.json"}
    (told,) = read_events(run, "checkpoint")
    assert (told["data"]["folder"], told["data"]["step"], told["data"]["epoch"]) == (folder.name, 8, 8 / EPOCH)


def test_a_frozen_runs_checkpoint_holds_the_head_alone(trainer: Trainer) -> None:
    run = trainer.lay_out("run", tuning={"type": "frozen"})
    trainer.train_until(run, 2)
    weights = load_file(run.checkpoints / "step-00000002" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "head.weight": (3, 32),
        "head.bias": (3,),
    }


def test_a_checkpoint_from_another_machines_folder_is_as_good(trainer: Trainer, expected: tuple[str, Fitted]) -> None:
    run = trainer.lay_out("here")
    trainer.train_until(run, 5)
    moved = trainer.lay_out("there")
    shutil.copytree(run.checkpoints, moved.checkpoints)
    torch.manual_seed(999)
    assert trainer.train(moved) == expected


def test_a_run_stopped_before_its_first_step_leaves_no_checkpoint(trainer: Trainer) -> None:
    run = trainer.lay_out("run")
    with pytest.raises(StoppedError):
        trainer.train(run, lambda: True)
    assert not run.checkpoints.exists()
