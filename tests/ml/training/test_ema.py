"""The moving average of the weights: by its closed form, and in a run, where it takes the weights' place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ml.data.splits import Part
from ml.training.ema import AveragedWeights
from ml.training.prepare import Prepared, logits_of
from tests.ml.runs import MACHINE, fit_run, lay_out, prepare_run, series

DECAY = 0.7
STEADY: dict[str, Any] = {
    "optimizer": {"type": "sgd", "learning_rate": 0.05},
    "schedule": {"type": "constant", "warmup": 0},
}


def weighted_mean(by_step: list[Tensor]) -> Tensor:
    """Each step counts DECAY times as much as the next one."""
    shares = torch.tensor([DECAY**age for age in reversed(range(len(by_step)))], dtype=torch.float64)
    stacked = torch.stack([one.double() for one in by_step])
    return torch.tensordot(shares / shares.sum(), stacked, dims=1)


def test_the_average_is_that_of_its_closed_form_without_the_first_weights() -> None:
    module = nn.Linear(3, 2)
    average = AveragedWeights(module, DECAY)
    seen = []
    for step in range(1, 6):
        nn.init.normal_(module.weight)
        average.update(step)
        seen.append(module.weight.detach().clone())
        torch.testing.assert_close(average.weights["weight"], weighted_mean(seen).float())


def test_the_average_takes_the_weights_place_and_gives_it_back() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    average = AveragedWeights(module, DECAY)
    nn.init.ones_(module.weight)
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert torch.equal(module.weight, before)
        raise ZeroDivisionError
    assert (module.weight == 1).all()


def test_what_does_not_train_is_not_averaged() -> None:
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    assert set(AveragedWeights(module, DECAY).weights) == {"bias"}


def trained(folder: Path, base: Path, **training: Any) -> Prepared:
    run = lay_out(folder, training={**STEADY, **training})
    prepared = prepare_run(run, base)
    fit_run(run, prepared)
    return prepared


def test_a_run_ends_with_the_average_of_the_weights_it_went_through(tmp_path: Path, tiny_base: Path) -> None:
    passed = [
        dict(trained(tmp_path / str(steps), tiny_base, max_steps=steps).network.named_parameters())
        for steps in (1, 2, 3, 4)
    ]
    averaged = trained(tmp_path / "averaged", tiny_base, max_steps=4, ema_decay=DECAY)
    for name, parameter in averaged.network.named_parameters():
        wanted = weighted_mean([weights[name].detach() for weights in passed])
        torch.testing.assert_close(parameter.double(), wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_averaging_leaves_training_as_it_was(tmp_path: Path, tiny_base: Path) -> None:
    runs = []
    for name, fields in (("plain", {}), ("averaged", {"ema_decay": 0.9})):
        run = lay_out(tmp_path / name, training={**STEADY, **fields})
        fit_run(run, prepare_run(run, tiny_base))
        runs.append(run)
    plain, averaged = runs
    assert series(averaged, "train/loss") == series(plain, "train/loss")
    assert series(averaged, "validation/loss") != series(plain, "validation/loss")


@pytest.mark.parametrize("early_stopping", [None, {"metric": "loss", "patience": 1}])
def test_what_was_measured_is_what_is_kept(
    tmp_path: Path, tiny_base: Path, early_stopping: dict[str, Any] | None
) -> None:
    run = lay_out(tmp_path, training={**STEADY, "ema_decay": 0.95, "early_stopping": early_stopping})
    prepared = prepare_run(run, tiny_base)
    fit_run(run, prepared)
    rows = prepared.rows_of(Part.VALIDATION)
    kept = prepared.task.evaluate(
        logits_of(prepared.network, prepared.tokens, rows, MACHINE), prepared.targets.labels.numpy()[rows]
    )
    measured = series(run, "validation/loss")
    wanted = min(measured.values()) if early_stopping else list(measured.values())[-1]
    assert kept["loss"] == pytest.approx(wanted, rel=1e-6)
