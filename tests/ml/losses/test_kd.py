import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import Targets
from ml.losses.kd import KdLoss
from ml.models.outputs import Outputs


def _losses(logits: Tensor, teacher: Tensor, temperature: float, reading: str = "softmax") -> Tensor:
    loss = KdLoss(teacher="mdl_x", temperature=temperature, reading=reading)
    labels = torch.zeros(len(logits), dtype=torch.int64)
    return loss.numerators(Outputs(logits, logits), Targets(labels, teacher=teacher))


def test_equals_a_slow_loop():
    logits, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    slow = []
    for z, t in zip((logits / 3).tolist(), (teacher / 3).tolist(), strict=True):
        p = [math.exp(a) / sum(math.exp(b) for b in z) for a in z]
        q = [math.exp(a) / sum(math.exp(b) for b in t) for a in t]
        slow.append(9 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True)))
    torch.testing.assert_close(_losses(logits, teacher, 3.0), torch.tensor(slow, dtype=torch.float64))


def test_equals_torch_with_the_temperature_squared():
    logits, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    wanted = functional.kl_div(
        functional.log_softmax(logits / 2, -1), functional.softmax(teacher / 2, -1), reduction="batchmean"
    )
    torch.testing.assert_close(_losses(logits, teacher, 2.0).mean(), 4 * wanted)


def test_two_labels_on_one_logit_are_those_on_two():
    z, t = torch.randn(2, 6, 1, dtype=torch.float64)
    two = _losses(torch.cat([-z / 2, z / 2], -1), torch.cat([-t / 2, t / 2], -1), 2.0)
    torch.testing.assert_close(_losses(z, t, 2.0, "sigmoid_pair"), two)


def test_gradients_keep_their_size_as_the_temperature_grows():
    """Without T² they would shrink by (50/500)² = 1/100: mistake 6 of the catalogue."""
    teacher = torch.randn(6, 4, dtype=torch.float64)
    norms = []
    for temperature in (50.0, 500.0):
        logits = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
        _losses(logits, teacher, temperature).sum().backward()
        assert logits.grad is not None
        norms.append(float(logits.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_no_gradient_flows_into_the_teacher():
    logits, teacher = torch.randn(2, 6, 4)
    _losses(logits.requires_grad_(), teacher, 2.0).sum().backward()
    assert teacher.grad is None
    assert (_losses(teacher, teacher, 2.0).abs() < 1e-6).all()


def test_a_teacher_of_other_labels_is_refused():
    with pytest.raises(ValueError, match="'mdl_x' has 3 outputs a row, the model 4"):
        _losses(torch.zeros(2, 4), torch.zeros(2, 3), 2.0)
