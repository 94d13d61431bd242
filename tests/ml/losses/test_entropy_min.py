import math

import pytest
import torch

from ml.losses.base import Targets
from ml.losses.entropy_min import EntropyMinLoss
from ml.models.outputs import Outputs


def _entropies(logits: torch.Tensor, reading: str) -> torch.Tensor:
    labels = torch.zeros(len(logits), dtype=torch.int64)
    return EntropyMinLoss(reading=reading).numerators(Outputs(logits, logits), Targets(labels))


def test_equals_a_slow_loop_over_a_softmax():
    logits = torch.randn(6, 4, dtype=torch.float64)
    slow = []
    for row in logits.tolist():
        total = sum(math.exp(z) for z in row)
        slow.append(-sum(math.exp(z) / total * math.log(math.exp(z) / total) for z in row))
    torch.testing.assert_close(_entropies(logits, "softmax"), torch.tensor(slow, dtype=torch.float64))


def test_is_the_mean_of_the_labels_entropies_over_sigmoids():
    logits = torch.randn(6, 4, dtype=torch.float64)
    slow = []
    for row in logits.tolist():
        ps = [1 / (1 + math.exp(-z)) for z in row]
        slow.append(-sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in ps) / len(ps))
    torch.testing.assert_close(_entropies(logits, "sigmoid"), torch.tensor(slow, dtype=torch.float64))


def test_is_the_logarithm_of_the_number_of_labels_where_nothing_is_known():
    found = _entropies(torch.zeros(2, 4, dtype=torch.float64), "softmax")
    torch.testing.assert_close(found, torch.full((2,), math.log(4), dtype=torch.float64))
    assert (_entropies(torch.tensor([[200.0, -200.0]]), "softmax") == 0).all()


def test_a_descent_makes_a_prediction_surer():
    logits = torch.tensor([[0.5, 0.1, -0.3]], dtype=torch.float64, requires_grad=True)
    _entropies(logits, "softmax").sum().backward()
    assert logits.grad is not None
    after = (logits - logits.grad).softmax(-1)
    assert after.max() > logits.softmax(-1).max()


def test_a_single_number_is_no_distribution():
    with pytest.raises(ValueError, match=r"'entropy_min' .* 'value'"):
        EntropyMinLoss(reading="value")
