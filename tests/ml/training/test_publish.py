"""A checkpoint as a model: what its training would have come to, had it ended there."""

from pathlib import Path
from typing import Any

import pytest

from ml.specs.errors import SpecError
from ml.training.errors import StoppedError
from ml.training.fit import Fitted
from ml.training.run import RunDirectory
from tests.ml.runs import (
    fit_run,
    flip_a_bit,
    lay_out,
    prepare_run,
    publish_run,
    read_events,
    stop_after,
    weights_sha256,
)

# 6 steps an epoch. The rate is that of no later step, so a longer training goes the same way.
TRAINING: dict[str, Any] = {
    "optimizer": {"type": "adamw", "learning_rate": 2e-3},
    "schedule": {"type": "constant", "warmup": 0.0},
}
# The first epoch's weights have a loss that no later step of this rate comes near.
GOING_WRONG: dict[str, Any] = {
    "optimizer": {"type": "adamw", "learning_rate": 0.5},
    "early_stopping": {"metric": "loss", "patience": 5},
}


def _stopped_at(run: RunDirectory, base: Path, step: int) -> None:
    with pytest.raises(StoppedError):
        fit_run(run, prepare_run(run, base), stop_after(run, step))


def _published(run: RunDirectory, base: Path) -> tuple[str, Fitted]:
    prepared = prepare_run(run, base)
    fitted = publish_run(run, prepared)
    return weights_sha256(prepared.network), fitted


@pytest.mark.parametrize("step", [8, 12], ids=["amid an epoch", "between two"])
@pytest.mark.parametrize(
    "training",
    [{}, {"ema_decay": 0.9}, {"early_stopping": {"metric": "loss", "patience": 2}}, GOING_WRONG],
    ids=["plain", "averaged", "stops early", "goes wrong"],
)
def test_it_is_what_a_training_that_ends_there_comes_to(
    tmp_path: Path, tiny_base: Path, training: dict[str, Any], step: int
) -> None:
    given = {**TRAINING, **training}
    whole = lay_out(tmp_path / "whole", training={**given, "max_steps": step})
    prepared = prepare_run(whole, tiny_base)
    expected = fit_run(whole, prepared)
    longer = lay_out(tmp_path / "longer", training={**given, "epochs": 4})
    _stopped_at(longer, tiny_base, step)
    assert _published(longer, tiny_base) == (weights_sha256(prepared.network), expected)


def test_a_damaged_checkpoint_makes_no_model(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path / "run", training=TRAINING)
    _stopped_at(run, tiny_base, 2)
    (folder,) = run.checkpoints.iterdir()
    flip_a_bit(folder / "model.safetensors")
    with pytest.raises(SpecError) as refused:
        _published(run, tiny_base)
    assert refused.value.problems[0].code == "checkpoint_damaged"
    assert "refused" in read_events(run, "message")[-1]["message"]
