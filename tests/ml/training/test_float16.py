"""Training in float16: gradients are scaled, a step that overflows is skipped, and a stopped run goes on as it was.

A job takes float16 on a GPU alone; the arithmetic is the same on a CPU.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from ml.training.errors import NonFiniteLossError, StoppedError
from ml.training.machine import Machine
from tests.ml.runs import MACHINE, fit_run, lay_out, prepare_run, series, stop_after, weights_sha256

FLOAT16 = replace(MACHINE, precision="float16")
TOO_HIGH = 2.0**40


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the scale begin elsewhere, and grow after few steps."""

    def install(init_scale: float, growth_interval: int = 2000) -> None:
        def make(_machine: Machine) -> GradScaler:
            return GradScaler("cpu", init_scale=init_scale, growth_interval=growth_interval)

        monkeypatch.setattr(Machine, "grad_scaler", make)

    return install


def test_it_learns_what_float32_learns(tmp_path: Path, tiny_base: Path) -> None:
    losses = {}
    for machine in (MACHINE, FLOAT16):
        run = lay_out(tmp_path / machine.precision, training={"dropout": 0.0})
        fit_run(run, prepare_run(run, tiny_base), machine=machine)
        losses[machine.precision] = series(run, "train/loss")
        assert bool(series(run, "train/loss_scale")) == (machine is FLOAT16)
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["float16"] != losses["float32"]


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])  # one that torch skips inside its kernel, and one outside
def test_a_step_that_overflows_moves_nothing_and_lowers_the_scale(
    tmp_path: Path, tiny_base: Path, scaled: Any, optimizer: str
) -> None:
    scaled(TOO_HIGH)
    run = lay_out(tmp_path, training={"optimizer": {"type": optimizer, "learning_rate": 1e-3}, "epochs": 6})
    prepared = prepare_run(run, tiny_base)
    before = weights_sha256(prepared.network)
    with pytest.raises(StoppedError):
        fit_run(run, prepared, stop_after(run, 1), machine=FLOAT16)
    assert weights_sha256(prepared.network) == before
    fitted = fit_run(run, prepare_run(run, tiny_base), machine=FLOAT16)
    scales, norms = series(run, "train/loss_scale"), series(run, "train/grad_norm")
    skipped = [step for step in scales if step not in norms]
    assert 1 in skipped
    assert len(skipped) < fitted.steps == 36
    assert scales[36] == TOO_HIGH / 2 ** len(skipped)
    assert list(series(run, "train/loss")) == list(range(1, 37))


def test_a_gradient_that_overflows_at_any_scale_ends_the_run(tmp_path: Path, tiny_base: Path, scaled: Any) -> None:
    scaled(4.0)
    run = lay_out(tmp_path)
    prepared = prepare_run(run, tiny_base)
    prepared.network.head.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"gradient norm (inf|nan)\) at step 4,"):  # after scales 4, 2 and 1
        fit_run(run, prepared, machine=FLOAT16)


def test_a_loss_that_is_no_number_is_not_taken_for_an_overflow(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path)
    prepared = prepare_run(run, tiny_base)
    with torch.no_grad():
        prepared.network.head.bias[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="at step 1, in cross_entropy"):
        fit_run(run, prepared, machine=FLOAT16)


@pytest.mark.parametrize(
    ("tuning", "combine"), [("full", "fixed"), ("full", "gradnorm"), ("adalora", "fixed")], ids=str
)
def test_a_stopped_run_goes_on_with_its_scale(
    tmp_path: Path, tiny_base: Path, scaled: Any, tuning: str, combine: str
) -> None:
    scaled(TOO_HIGH, growth_interval=3)
    loss = {"terms": [{"loss": "cross_entropy"}, {"loss": "focal"}], "combine": combine}
    training = {"optimizer": {"type": "adamw", "learning_rate": 2e-3}, "epochs": 5}
    whole, stopped = (
        lay_out(tmp_path / name, training=training, tuning={"type": tuning}, loss=loss) for name in ("whole", "stopped")
    )
    expected = prepare_run(whole, tiny_base)
    fit_run(whole, expected, machine=FLOAT16)
    for step in (2, 25):
        with pytest.raises(StoppedError, match=re.escape(f"step {step}")):
            fit_run(stopped, prepare_run(stopped, tiny_base), stop_after(stopped, step), machine=FLOAT16)
    found = prepare_run(stopped, tiny_base)
    fit_run(stopped, found, machine=FLOAT16)
    assert weights_sha256(found.network) == weights_sha256(expected.network)
    scales = series(whole, "train/loss_scale")
    assert series(stopped, "train/loss_scale") == scales
    assert scales[25] < scales[2]
    assert any(scales[step + 1] > scales[step] for step in range(2, 30))  # it grew back now and then
