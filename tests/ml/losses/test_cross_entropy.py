"""Cross-entropy by label weights and smoothing is torch's, however its rows are cut."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Targets
from ml.losses.cross_entropy import CrossEntropyLoss
from ml.models.outputs import Outputs
from tests.ml.losses.checks import rows_of, step_of

WEIGHTS = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)


def example(rows: int = 24) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and targets (N,)."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * 2
    return logits, torch.randint(0, 3, (rows,), generator=generator)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch_over_the_whole_batch(weights: Tensor | None, smoothing: float) -> None:
    logits, targets = example()
    targets[4] = IGNORED
    ours = step_of(CrossEntropyLoss(label_smoothing=smoothing, class_weights=weights), logits, targets)
    torchs = functional.cross_entropy(logits, targets, weights, ignore_index=IGNORED, label_smoothing=smoothing)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=0)


def test_micro_batches_add_up_to_the_full_batch_where_the_mean_of_their_means_does_not() -> None:
    logits, targets = example()
    loss = CrossEntropyLoss(label_smoothing=0.1, class_weights=WEIGHTS)
    whole = step_of(loss, logits, targets)
    pieces = list(zip(logits.split(5), targets.split(5), strict=True))
    numerators = sum(rows_of(loss, z, y).sum() for z, y in pieces)
    denominators = sum(loss.denominators(Targets(y)).sum() for _, y in pieces)
    torch.testing.assert_close(numerators / denominators, whole, rtol=1e-12, atol=0)

    mean_of_means = torch.stack([step_of(loss, z, y) for z, y in pieces]).mean()
    assert abs(mean_of_means - whole) > 0.01


def test_smoothing_is_weighted_and_divided_as_torch_does_it_for_class_ids() -> None:
    logits, targets = example()
    smoothing, classes = 0.2, 3
    log_p = logits.log_softmax(-1)
    by_hand, divisor = 0.0, 0.0
    for row, y in zip(log_p.tolist(), targets.tolist(), strict=True):
        by_hand += (1 - smoothing) * WEIGHTS[y].item() * -row[y]
        by_hand += sum(smoothing / classes * WEIGHTS[c].item() * -row[c] for c in range(classes))
        divisor += WEIGHTS[y].item()
    ours = step_of(CrossEntropyLoss(label_smoothing=smoothing, class_weights=WEIGHTS), logits, targets)
    assert ours.item() == pytest.approx(by_hand / divisor, rel=1e-12)

    # The same smoothed target passed as probabilities is divided by N: another number altogether.
    soft = torch.full_like(logits, smoothing / classes)
    soft[torch.arange(len(targets)), targets] += 1 - smoothing
    assert abs(functional.cross_entropy(logits, soft, WEIGHTS) - ours) > 0.1


def test_ignored_rows_count_neither_above_nor_below() -> None:
    logits, targets = example(4)
    targets[:] = IGNORED
    for weights in (None, WEIGHTS):
        loss = CrossEntropyLoss(label_smoothing=0.1, class_weights=weights)
        assert rows_of(loss, logits, targets).tolist() == [0, 0, 0, 0]
        assert loss.denominators(Targets(targets)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("under_autocast", [False, True])
def test_is_finite_with_a_finite_gradient_at_extreme_logits(under_autocast: bool) -> None:
    dtype = torch.bfloat16 if under_autocast else torch.float32
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = CrossEntropyLoss(label_smoothing=0.1, class_weights=WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
        losses = loss.numerators(Outputs(logits, logits).in_full_precision(), Targets(torch.tensor([1, 1])))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
