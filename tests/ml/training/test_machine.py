"""What a run decides about its machine, once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ml.cores import usable_cores
from ml.memory import MICRO_BATCH_TOKENS, row_bytes, tokens_that_fit, weight_bytes
from ml.specs.errors import SpecError
from ml.specs.job import Training
from ml.training import machine as module
from ml.training.machine import Machine, look_around, spare_bytes
from ml.training.run import Placement
from tests.ml.datasets import Dataset, base
from tests.ml.runs import MACHINE

GIGABYTE = 10**9


def look(before: dict[str, Any] | None = None, threads: int = 1, **training: Any) -> Machine:
    """With memory in plenty."""
    return look_around(Training.model_validate(training), Placement(threads=threads), lambda _spare: 10**9, before)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, tuple[int, int]], None]:
    """Make torch believe in a GPU with bfloat16 or without, of a compute capability."""

    def install(has_bfloat16: bool, capability: tuple[int, int]) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: has_bfloat16)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (3000, 9000))

    return install


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_was_asked_for_is_used(precision: str) -> None:
    machine = look(precision=precision)
    assert machine.precision == precision
    assert machine.autocast()._enabled == (precision == "bfloat16")
    assert not machine.grad_scaler().is_enabled()


def test_auto_decides_for_one_of_the_two() -> None:
    assert look().precision in {"float32", "bfloat16"}


@pytest.mark.parametrize(
    ("has_bfloat16", "capability", "precision"),
    [(True, (8, 0), "bfloat16"), (False, (7, 5), "float16"), (False, (6, 1), "float32")],
)
def test_auto_takes_of_a_gpu_what_it_has_units_for(
    gpu: Callable[..., None], has_bfloat16: bool, capability: tuple[int, int], precision: str
) -> None:
    gpu(has_bfloat16, capability)
    assert look().precision == precision
    assert look(precision="float16").precision == "float16"


def test_a_cpu_refuses_float16_and_says_what_to_take() -> None:
    with pytest.raises(SpecError, match=r"for GPUs.*Take auto") as caught:
        look(precision="float16")
    assert caught.value.problems[0].pointer == "/training/precision"


def test_float16_is_cast_to_and_scaled() -> None:
    machine = replace(MACHINE, precision="float16")
    with machine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
    assert machine.grad_scaler().is_enabled()


def test_every_usable_core_is_used_unless_told_otherwise() -> None:
    assert look(threads=0).threads == usable_cores() >= 1
    assert look(threads=3).threads == 3


def test_a_resumed_run_decides_as_before_on_the_same_kind_of_device() -> None:
    before = {**MACHINE.as_dict(), "device": look().device, "threads": 7, "micro_batch_tokens": 123}
    assert look(before).as_dict() == before
    assert look({**before, "device": "another"}) == look()


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("fitting", "expected"), [(10**9, MICRO_BATCH_TOKENS), (500, 500)])
def test_a_pass_takes_what_fits_and_no_more_than_gains_speed(
    fitting: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked: list[int] = []

    def fit(spare: int) -> int:
        asked.append(spare)
        return fitting

    assert look_around(Training(), Placement(), fit).micro_batch_tokens == expected
    assert 0 < asked[0] < 10**15


def test_a_gpu_is_asked_how_much_is_free(gpu: Callable[..., None]) -> None:
    gpu(True, (8, 0))
    machine = look_around(Training(), Placement(memory_bytes=1), lambda spare: spare)
    assert (machine.device, machine.micro_batch_tokens) == ("cuda", 3000)


def test_what_is_spare_is_the_least_that_a_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONTROL_GROUP", tmp_path)
    machine = spare_bytes("cpu", 0)
    assert machine is not None
    used = spare_bytes("cpu", 10**15)
    assert used is not None
    assert used <= machine + GIGABYTE  # a limit beyond the machine's memory leaves the machine's
    assert spare_bytes("cpu", 1) == 0
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert spare_bytes("cpu", 0) != 400
    (tmp_path / "memory.max").write_text("1000\n")
    assert spare_bytes("cpu", 0) == 400


def test_tokens_that_fit_leave_room_for_weights_and_are_one_at_least() -> None:
    on = base(parameters=22_700_000)
    resolved = Dataset().resolve(on)
    tokens = tokens_that_fit(resolved, on, 2 * GIGABYTE)
    kept = weight_bytes(resolved, on) + tokens * row_bytes(resolved, on) / 128
    assert 0.79 * 2 * GIGABYTE < kept <= 0.8 * 2 * GIGABYTE
    assert tokens_that_fit(resolved, on, 4 * GIGABYTE) > 2 * tokens
    assert tokens_that_fit(resolved, on, 1000) == 1
    longer = Dataset().resolve(on, training={"max_length": 512})
    assert tokens_that_fit(longer, on, 2 * GIGABYTE) < tokens  # attention keeps more of each
