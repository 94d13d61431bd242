"""Cumulative link: the likelihood of the level, where probabilities round to 0 and 1 and where thresholds meet."""

import numpy as np
import pytest
import torch

from ml.models.heads import build_head
from ml.specs.losses.table import LOSS_SPECS
from ml.tasks.readings import label_reading
from tests.ml.losses.checks import LEVELS, assert_finite_at_extremes, assert_ignores_minus_100, loss_of, rows_of

SPEC = LOSS_SPECS["cumulative_link"]


def _falling(rows: int, spread: float = 2.0) -> torch.Tensor:
    return (spread * torch.randn(rows, 3, dtype=torch.float64)).sort(-1, descending=True).values


def test_equals_differences_of_sigmoids() -> None:
    logits, levels = _falling(50), torch.randint(0, 4, (50,))
    above = torch.cat([torch.ones(50, 1), torch.sigmoid(logits), torch.zeros(50, 1)], -1)
    p = (above[:, :-1] - above[:, 1:]).gather(-1, levels[:, None])[:, 0]
    torch.testing.assert_close(rows_of(loss_of("cumulative_link"), logits, levels), -p.log())


def test_is_the_log_likelihood_that_its_reading_gives() -> None:
    logits, levels = _falling(50), torch.randint(0, 4, (50,))
    scores = label_reading(SPEC.readings["ordinal"], LEVELS.labels).scores(logits.numpy())
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-12)
    expected = -np.log(scores[np.arange(50), levels.numpy()])
    np.testing.assert_allclose(rows_of(loss_of("cumulative_link"), logits, levels).numpy(), expected)


def test_keeps_what_a_difference_of_sigmoids_loses() -> None:
    logits = torch.tensor([[40.0, 39.0, -5.0]])  # both sigmoids round to 1 in float32
    expected = -np.log(np.exp(-39.0) - np.exp(-40.0))
    assert rows_of(loss_of("cumulative_link"), logits, torch.tensor([1])).item() == pytest.approx(expected, rel=1e-6)


def test_pushes_apart_thresholds_that_meet_or_cross() -> None:
    for gap in (0.0, -1.0):
        logits = torch.tensor([[2.0, 1.0, 1.0 - gap]], requires_grad=True)
        rows = rows_of(loss_of("cumulative_link"), logits, torch.tensor([2]))
        (gradient,) = torch.autograd.grad(rows.sum(), logits)
        assert rows.isfinite().all()
        assert gradient[0, 1] < 0 < gradient[0, 2]


def test_its_value_is_continuous_where_it_turns_straight() -> None:
    logits = torch.tensor([[0.0, -gap] for gap in (1.0001e-4, 0.9999e-4)], dtype=torch.float64)
    near, nearer = rows_of(loss_of("cumulative_link"), logits, torch.tensor([1, 1])).tolist()
    assert nearer == pytest.approx(near, abs=3e-4)


def test_its_head_keeps_thresholds_in_order() -> None:
    head = build_head(SPEC.head, 8, 3, 1.0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=3)
    logits = head(torch.randn(20, 8))
    assert (logits.diff(dim=-1) <= 0).all()
    assert rows_of(loss_of("cumulative_link"), logits, torch.randint(0, 4, (20,))).isfinite().all()


def test_ignores_rows_labelled_minus_100() -> None:
    assert_ignores_minus_100(loss_of("cumulative_link"), 3)


def test_is_finite_at_extreme_logits() -> None:
    assert_finite_at_extremes(loss_of("cumulative_link"), 3, [0, 1, 2, 3], torch.int64)
    assert_finite_at_extremes(loss_of("cumulative_link"), 1, [0, 1], torch.int64)
