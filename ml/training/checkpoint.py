"""Checkpoints: all that a run needs to go on as if it had never stopped. safetensors and JSON, never pickle.

It knows how to save and load a run's state, not when.
"""

import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ml.artifact.manifest import DamagedFolderError, publish_folder, read_manifest, verify_folder
from ml.specs.errors import refuse
from ml.training.early_stopping import Patience
from ml.training.ema import AveragedWeights

# The newest checkpoints kept in the run directory: one to fall back to, and one that may still be being copied away.
KEPT = 3

# What a run may do otherwise than before: the result is as good, but no longer the same to the bit.
ENVIRONMENT = ("machine", "torch")

WEIGHTS, BEST, AVERAGE = "model.safetensors", "best.safetensors", "average.safetensors"
OPTIMIZER, OBJECTIVE, RNG = "optimizer.safetensors", "objective.safetensors", "rng.safetensors"


@dataclass
class Position:
    """Where a run is. It is the JSON part of a checkpoint."""

    step: int = 0  # optimizer steps made
    epoch: int = 0  # epochs finished
    step_in_epoch: int = 0
    measured_step: int = 0  # the step that validation was last measured after
    patience: Patience = field(default_factory=Patience)
    validation: dict[str, float] = field(default_factory=dict)
    is_finished: bool = False  # early stopping said so


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    objective: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler,
    position: Position,
    best: dict[str, Tensor] | None,
    average: dict[str, Tensor] | None,
    *,
    fingerprint: dict[str, Any],
    copied: list[Path],
) -> Path:
    """Write `folder/step-…` whole or not at all, and return it. `copied`: small files that make it complete."""
    target = folder / f"step-{position.step:08d}"
    if target.exists():  # the same step again, after a resume
        try:
            verify_folder(target)
        except DamagedFolderError:  # which is why the run went back before it
            shutil.rmtree(target)
        else:
            return target
    facts = {
        "step": position.step,
        "position": asdict(position),
        "scaler": scaler.state_dict(),
        "fingerprint": fingerprint,
        "python_rng": _python(),
    }
    with publish_folder(target, "checkpoint", facts) as temporary:
        save_file(contiguous(trainable_state(network)), temporary / WEIGHTS)
        save_file(_optimizer_tensors(optimizer), temporary / OPTIMIZER)
        save_file(contiguous(objective.state_dict()), temporary / OBJECTIVE)
        save_file(_rng_tensors(), temporary / RNG)
        for file, weights in ((BEST, best), (AVERAGE, average)):
            if weights is not None:
                save_file(contiguous(weights), temporary / file)
        for path in copied:
            shutil.copyfile(path, temporary / path.name)
    older = [path for path in sorted(folder.glob("step-*")) if path.name < target.name]
    for old in older[: 1 - KEPT]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    objective: nn.Module,
    optimizer: Optimizer,
    scaler: GradScaler,
    average: AveragedWeights | None,
    fingerprint: dict[str, Any],
) -> tuple[Position, dict[str, Tensor] | None]:
    """Put a verified checkpoint back. Raises SpecError where it belongs to a run of another spec, data or base."""
    manifest = read_manifest(folder)
    if differing := [key for key in differences(folder, fingerprint) if key not in ENVIRONMENT]:
        raise refuse(
            "",
            f"checkpoint {folder.name} is from a run with another {', '.join(differing)}. Put back what was there, or "
            "remove the folder `checkpoints` to train anew.",
            "foreign_checkpoint",
        )
    network.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    objective.load_state_dict(load_file(folder / OBJECTIVE))
    _restore_optimizer(optimizer, load_file(folder / OPTIMIZER))
    if state := manifest["scaler"]:  # none, of a run whose device had a better precision
        scaler.load_state_dict(state)
    if average is not None:
        average.load(load_file(folder / AVERAGE))
    _restore_rng(load_file(folder / RNG), manifest["python_rng"])
    at = manifest["position"]
    position = Position(**{**at, "patience": Patience(**at["patience"])})
    return position, load_file(folder / BEST) if (folder / BEST).exists() else None


def differences(folder: Path, fingerprint: dict[str, Any]) -> list[str]:
    """In what a checkpoint's run differed from this one."""
    before = read_manifest(folder)["fingerprint"]
    return [key for key, value in fingerprint.items() if before.get(key) != value]


def remembered_machine(folder: Path) -> dict[str, Any] | None:
    """How the newest checkpoint's run used its machine: a resumed run does the same, or its bits would differ."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            machine: dict[str, Any] = read_manifest(path)["fingerprint"]["machine"]
        except (DamagedFolderError, KeyError):
            continue
        return machine
    return None


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights that change: those of trainable parameters, and every buffer that is saved."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: on the CPU, each in one piece."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _rng_tensors() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    for i, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
        states[f"cuda.{i}"] = state
    return states


def _python() -> dict[str, Any]:
    """The generators of python and numpy, as JSON: other people's code draws from them."""
    version, numbers, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    keys_list = [int(key) for key in keys]
    return {"random": [version, list(numbers), gauss], "numpy": [name, keys_list, place, has_gauss, cached]}


def _restore_rng(tensors: dict[str, Tensor], python: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([tensors[f"cuda.{i}"] for i in range(len(tensors) - 1)])
    version, numbers, gauss = python["random"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, place, has_gauss, cached = python["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), place, has_gauss, cached))
