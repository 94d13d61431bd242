import math
from typing import Any

import pytest
import torch

from ml.losses.base import IGNORED, Targets
from ml.losses.r_drop import RDropLoss
from ml.models.outputs import Outputs


def _outputs(one: torch.Tensor, two: torch.Tensor) -> Outputs:
    nothing = torch.zeros(len(one), 1)
    return Outputs(one, nothing, second=Outputs(two, nothing))


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def _softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def _sigmoids(row: list[float]) -> list[list[float]]:
    return [[1 / (1 + math.exp(z)), 1 / (1 + math.exp(-z))] for z in row]


def _both(p: list[float], q: list[float]) -> float:
    return (_kl(p, q) + _kl(q, p)) / 2


@pytest.mark.parametrize("reading", ["softmax", "scores"])
def test_equals_a_slow_loop_over_a_softmax(reading: str):
    one, two = torch.randn(2, 7, 4, dtype=torch.float64)
    found = RDropLoss(reading=reading).numerators(_outputs(one, two), Targets(torch.arange(7) % 4))
    slow = [_both(_softmax(a), _softmax(b)) for a, b in zip(one.tolist(), two.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize(("reading", "width"), [("sigmoid", 4), ("multi_scores", 4), ("sigmoid_pair", 1)])
def test_equals_a_slow_loop_over_sigmoids_averaged_over_labels(reading: str, width: int):
    one, two = torch.randn(2, 7, width, dtype=torch.float64)
    labels: Any = torch.ones(7, width) if width > 1 else torch.ones(7, dtype=torch.int64)
    found = RDropLoss(reading=reading).numerators(_outputs(one, two), Targets(labels))
    slow = [
        sum(_both(p, q) for p, q in zip(_sigmoids(a), _sigmoids(b), strict=True)) / width
        for a, b in zip(one.tolist(), two.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64))


def test_is_zero_where_both_passes_agree_and_the_same_either_way_round():
    one, two = torch.randn(2, 5, 3, dtype=torch.float64)
    loss, targets = RDropLoss(reading="softmax"), Targets(torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(loss.numerators(_outputs(one, one), targets), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(
        loss.numerators(_outputs(one, two), targets), loss.numerators(_outputs(two, one), targets)
    )


def test_both_passes_learn():
    one, two = torch.randn(2, 5, 3, dtype=torch.float64)
    one, two = one.requires_grad_(), two.requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, IGNORED])
    RDropLoss(reading="softmax").numerators(_outputs(one, two), Targets(labels)).sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert (one.grad[:4] != 0).all()
    assert (two.grad[:4] != 0).all()
    assert (one.grad[4] == 0).all()


def test_a_single_number_is_no_distribution():
    with pytest.raises(ValueError, match=r"'r_drop' .* 'rank'"):
        RDropLoss(reading="rank")
