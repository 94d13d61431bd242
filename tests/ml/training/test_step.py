"""The first acceptance test: loss and gradient of a step are the same however its rows are cut."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.bases import DEFAULT_BASE, find_base
from ml.data.tokens import FeatureTable, TokenTable
from ml.losses.base import IGNORED, Loss
from ml.losses.cross_entropy import CrossEntropyLoss
from ml.losses.focal import FocalLoss
from ml.models.classifier import LinearHead, load_native
from ml.training.machine import Machine
from ml.training.optimizers import clip_gradients
from ml.training.step import StepReport, backward_step
from tests.ml.runs import MACHINE
from tests.tiny_base import LABEL_WORDS, learnable_rows

LABELS = tuple(sorted(LABEL_WORDS))
WEIGHTS = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropyLoss(label_smoothing=0.1, class_weights=WEIGHTS),
    "focal": FocalLoss(gamma=2.0, alpha=WEIGHTS),
}
# 32 rows as one pass, as ever more, and by a budget of tokens that cuts them unevenly.
CUTS: list[tuple[int | None, int]] = [(32, 1), (16, 1), (8, 1), (5, 1), (1, 1), (None, 100)]

SENTENCES = [
    "Where is my parcel? It was due on Monday.",
    "The courier left it with a neighbour.",
    "Please refund the delivery fee.",
    "I was charged twice.",
    "Can I change the address?",
    "Opening hours on Sunday?",
    "It arrived broken.",
    "Thanks, all good!",
    "The invoice shows the wrong company name, not ours.",
    "Cancel my order.",
    "Do you sell gift cards?",
    "My card was declined although there is money on it.",
    "Still waiting for an answer.",
    "The driver never rang the bell.",
    "How long does a bank transfer take?",
    "Is the blue one back in stock?",
]


@dataclass
class Example:
    """A network and 32 rows for it."""

    network: nn.Module
    tokens: TokenTable
    targets: Tensor

    def step(self, loss: Loss, rows_at_once: int | None, budget: int) -> tuple[StepReport, float]:
        """Take a step's gradient from nothing; return the report and the gradient's norm."""
        self.network.zero_grad()
        machine = replace(MACHINE, micro_batch_tokens=budget)
        report = backward_step(
            self.network, loss, self.tokens, self.targets, np.arange(len(self.targets)), machine, rows_at_once
        )
        return report, float(clip_gradients(self.network, None))


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> Example:
    rows = learnable_rows(32)
    tokens = TokenTable(tiny_base, [text for text, _ in rows], 32, pad_id=0, has_types=True)
    torch.manual_seed(1)
    network = load_native(tiny_base, LABELS, 0.0).double().train()
    return Example(network, tokens, torch.tensor([LABELS.index(label) for _, label in rows]))


@pytest.fixture(scope="module")
def minilm() -> Example:
    base = find_base(DEFAULT_BASE, {})
    texts = [*SENTENCES, *(f"{sentence} {i}" for i, sentence in enumerate(reversed(SENTENCES)))]
    torch.manual_seed(1)
    network = load_native(base, LABELS, 0.0).train()
    targets = torch.arange(len(texts)) % len(LABELS)
    return Example(network, TokenTable(base, list(texts), 128, pad_id=0, has_types=True), targets)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_norm_are_the_same_however_a_step_is_cut_in_float64(tiny: Example, name: str) -> None:
    report, norm = tiny.step(LOSSES[name], None, 10**6)
    gradients = [p.grad.clone() for p in tiny.network.parameters() if p.grad is not None]
    for cut in CUTS:
        other, other_norm = tiny.step(LOSSES[name], *cut)
        assert other.loss == pytest.approx(report.loss, rel=1e-10), cut
        assert other_norm == pytest.approx(norm, rel=1e-10), cut
        for p, expected in zip((p for p in tiny.network.parameters() if p.grad is not None), gradients, strict=True):
            torch.testing.assert_close(p.grad, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_norm_are_the_same_however_a_step_is_cut_in_float32_on_minilm(
    minilm: Example, name: str
) -> None:
    report, norm = minilm.step(LOSSES[name], *CUTS[0])
    for cut in CUTS[1:]:
        other, other_norm = minilm.step(LOSSES[name], *cut)
        assert other.loss == pytest.approx(report.loss, rel=1e-5), cut
        assert other_norm == pytest.approx(norm, rel=1e-5), cut


def test_the_cuts_differ_in_what_they_pad(tiny: Example) -> None:
    padded = [tiny.step(LOSSES["focal"], *cut)[0].padded_tokens for cut in CUTS]
    real = int(tiny.tokens.lengths.sum())
    assert padded[4] == real  # a row alone is not padded
    assert padded[0] == 32 * int(tiny.tokens.lengths.max())
    assert real < padded[5] < padded[0]


def test_a_step_cut_to_single_rows_equals_torch_over_the_whole_batch(tiny: Example) -> None:
    report, norm = tiny.step(LOSSES["cross_entropy"], 1, 1)
    tiny.network.zero_grad()
    logits = tiny.network(**tiny.tokens.inputs_of(np.arange(32))).logits
    loss = functional.cross_entropy(logits, tiny.targets, WEIGHTS, label_smoothing=0.1)
    loss.backward()
    assert report.loss == pytest.approx(loss.item(), rel=1e-10)
    whole = torch.cat([p.grad.flatten() for p in tiny.network.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(whole.item(), rel=1e-10)


def test_the_report_counts_rows_and_tokens(tiny: Example) -> None:
    report, _ = tiny.step(LOSSES["focal"], 5, 1)
    assert (report.rows, report.real_tokens) == (32, int(tiny.tokens.lengths.sum()))


def head_step(targets: list[int], loss: Loss, machine: Machine = MACHINE) -> tuple[StepReport, LinearHead]:
    """A step over rows of one feature, 1.0, by a head that answers (8, −8)."""
    head = LinearHead(1, 2, 0.0)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[8.0], [-8.0]]))
        head.linear.bias.zero_()
    features = FeatureTable(torch.ones(len(targets), 1))
    return backward_step(head, loss, features, torch.tensor(targets), np.arange(len(targets)), machine, None), head


def test_rows_without_a_target_count_for_nothing() -> None:
    loss = CrossEntropyLoss(label_smoothing=0.0, class_weights=None)
    assert head_step([1, IGNORED, IGNORED, 1], loss)[0].loss == pytest.approx(16, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_in_which_every_label_is_ignored_names_its_rows(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape("none of the 3 rows")) as caught:
        head_step([IGNORED] * 3, LOSSES[name])
    assert "rows 1, 2, 3" in str(caught.value)


def test_a_step_in_which_every_label_weighs_nothing_names_its_rows() -> None:
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="rows 1, 2"):
        head_step([0, 0], CrossEntropyLoss(label_smoothing=0.0, class_weights=weights))


@pytest.mark.parametrize(
    "loss", [CrossEntropyLoss(label_smoothing=0.0, class_weights=None), FocalLoss(gamma=0.0, alpha=None)], ids=str
)
def test_the_loss_of_a_sure_answer_is_not_lost_under_bfloat16(loss: Loss) -> None:
    report, head = head_step([0], loss, replace(MACHINE, precision="bfloat16"))
    assert report.loss == pytest.approx(1.19e-7, rel=0.1)
    assert head.linear.bias.grad is not None
    assert head.linear.bias.grad[1] == pytest.approx(1.13e-7, rel=0.1)
