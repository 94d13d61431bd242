"""What a run decides about its machine, once."""

import pytest

from ml.specs.job import Training
from ml.training.machine import look_around, usable_cores
from tests.ml.runs import MACHINE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_was_asked_for_is_used(precision: str) -> None:
    machine = look_around(Training.model_validate({"precision": precision}), 1)
    assert machine.precision == precision
    assert machine.autocast()._enabled == (precision == "bfloat16")


def test_auto_decides_for_one_of_the_two() -> None:
    assert look_around(Training(), 1).precision in {"float32", "bfloat16"}


def test_every_usable_core_is_used_unless_told_otherwise() -> None:
    assert look_around(Training(), 0).threads == usable_cores() >= 1
    assert look_around(Training(), 3).threads == 3


def test_a_resumed_run_decides_as_before_on_the_same_kind_of_device() -> None:
    device = look_around(Training(), 1).device
    before = {**MACHINE.as_dict(), "device": device, "threads": 7, "micro_batch_tokens": 123}
    assert look_around(Training(), 1, before).as_dict() == before
    elsewhere = {**before, "device": "another"}
    assert look_around(Training(), 1, elsewhere) == look_around(Training(), 1)
