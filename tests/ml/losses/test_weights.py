import math

import pytest

from ml.losses.weights import weight_at
from ml.specs.losses.composition import WeightSchedule


def _schedule(shape: str, start: float = 0.2, end: float = 0.6) -> WeightSchedule:
    return WeightSchedule.model_validate({"schedule": shape, "from": 1.0, "to": 3.0, "start": start, "end": end})


def test_a_number_never_changes():
    assert [weight_at(0.7, progress) for progress in (0, 0.5, 1)] == [0.7, 0.7, 0.7]


@pytest.mark.parametrize(
    ("shape", "quarter", "middle"),
    [
        ("linear", 1.5, 2.0),
        ("cosine", 1 + (1 - math.cos(math.pi / 4)), 2.0),
        ("step", 1.0, 1.0),
        ("warmup", 1.125, 1.5),
    ],
)
def test_a_schedule_goes_from_one_weight_to_the_other(shape: str, quarter: float, middle: float):
    schedule = _schedule(shape)
    assert weight_at(schedule, 0) == 1  # before the start
    assert weight_at(schedule, 0.2) == pytest.approx(1)
    assert weight_at(schedule, 0.3) == pytest.approx(quarter)
    assert weight_at(schedule, 0.4) == pytest.approx(middle)
    assert weight_at(schedule, 0.6) == pytest.approx(3)
    assert weight_at(schedule, 1) == 3  # after the end


def test_step_jumps_at_the_end():
    schedule = _schedule("step", 0, 0.5)
    assert weight_at(schedule, 0.499) == 1
    assert weight_at(schedule, 0.5) == 3


def test_a_schedule_may_fall():
    schedule = WeightSchedule.model_validate({"schedule": "linear", "from": 2.0, "to": 0.0})
    assert [weight_at(schedule, progress) for progress in (0, 0.25, 1)] == [2, 1.5, 0]
