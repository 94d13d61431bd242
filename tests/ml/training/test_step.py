"""The first acceptance test: loss and gradient of a step are the same however its rows are cut.

Every loss in the table goes through the same in `test_every_loss`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional

from ml.bases import DEFAULT_BASE, find_base
from ml.data.tokens import FeatureTable, TokenTable
from ml.losses.base import IGNORED, LossContext, Targets
from ml.losses.objective import Objective
from ml.models.classifier import FeatureHead, load_native
from ml.specs.losses.composition import Loss
from ml.training.machine import Machine
from ml.training.optimizers import clip_gradients
from ml.training.step import UNSCALED, Batch, StepReport, backward_step
from tests.ml.runs import MACHINE
from tests.tiny_base import LABEL_WORDS, learnable_rows

LABELS = tuple(sorted(LABEL_WORDS))
WEIGHTS = dict(zip(LABELS, (0.3, 1.0, 4.0), strict=True))
LOSSES: dict[str, Any] = {
    "cross_entropy": {"type": "cross_entropy", "label_smoothing": 0.1, "class_weights": WEIGHTS},
    "focal": {"type": "focal", "alpha": WEIGHTS},
}
TWO_TERMS = {"terms": [{"loss": LOSSES["cross_entropy"], "weight": 0.7}, {"loss": "focal", "weight": 0.3}]}
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


def objective_of(loss: Any) -> Objective:
    """What a spec's loss minimises over three labels."""
    spec: Any = TypeAdapter(Loss).validate_python(loss)
    return Objective(spec, LossContext(labels=LABELS, train_counts=dict.fromkeys(LABELS, 10)))


def native(base: Path) -> nn.Module:
    """A network without dropout."""
    return load_native(base, width=3, labels=LABELS, head="linear", scale=1.0, dropout=0.0)


@dataclass
class Example:
    """A network and 32 rows for it."""

    network: nn.Module
    tokens: TokenTable
    targets: Targets
    objective: Objective | None = None  # of the last step

    def step(
        self, loss: Any, rows_at_once: int | None, budget: int, scaler: GradScaler = UNSCALED
    ) -> tuple[StepReport, float]:
        """Take a step's gradient from nothing; return the report and the gradient's norm."""
        self.network.zero_grad()
        self.objective = objective_of(loss)
        machine = replace(MACHINE, micro_batch_tokens=budget)
        report = backward_step(
            self.network,
            self.objective,
            Batch(self.tokens, self.targets, np.arange(len(self.targets.labels))),
            machine,
            rows_at_once,
            0.0,
            scaler,
        )
        return report, float(clip_gradients(self.network, None))


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> Example:
    rows = learnable_rows(32)
    tokens = TokenTable.of(tiny_base, [text for text, _ in rows], 32, pad_id=0, has_types=True)
    torch.manual_seed(1)
    network = native(tiny_base).double().train()
    return Example(network, tokens, Targets(torch.tensor([LABELS.index(label) for _, label in rows])))


@pytest.fixture(scope="module")
def minilm() -> Example:
    base = find_base(DEFAULT_BASE, {})
    texts = [*SENTENCES, *(f"{sentence} {i}" for i, sentence in enumerate(reversed(SENTENCES)))]
    torch.manual_seed(1)
    network = native(base).train()
    targets = Targets(torch.arange(len(texts)) % len(LABELS))
    return Example(network, TokenTable.of(base, list(texts), 128, pad_id=0, has_types=True), targets)


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


def test_loss_and_gradient_norm_are_the_same_however_a_step_is_cut_in_float32_on_minilm(minilm: Example) -> None:
    both = {"terms": [{"loss": loss} for loss in LOSSES.values()]}
    report, norm = minilm.step(both, *CUTS[0])
    for cut in CUTS[1:]:
        other, other_norm = minilm.step(both, *cut)
        assert other.loss == pytest.approx(report.loss, rel=1e-5), cut
        assert other.terms == pytest.approx(dict(report.terms), rel=1e-5), cut
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
    weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    loss = functional.cross_entropy(logits, tiny.targets.labels, weights, label_smoothing=0.1)
    loss.backward()
    assert report.loss == pytest.approx(loss.item(), rel=1e-10)
    whole = torch.cat([p.grad.flatten() for p in tiny.network.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(whole.item(), rel=1e-10)


def test_the_report_counts_rows_and_tokens(tiny: Example) -> None:
    report, _ = tiny.step(LOSSES["focal"], 5, 1)
    assert (report.rows, report.real_tokens) == (32, int(tiny.tokens.lengths.sum()))


def test_the_loss_is_the_weighted_sum_of_the_terms_and_each_is_told(tiny: Example) -> None:
    report, norm = tiny.step(TWO_TERMS, 5, 1)
    alone = [tiny.step(loss, None, 10**6)[0].loss for loss in (LOSSES["cross_entropy"], "focal")]
    assert report.terms == pytest.approx({"cross_entropy": alone[0], "focal": alone[1]}, rel=1e-10)
    assert report.loss == pytest.approx(0.7 * alone[0] + 0.3 * alone[1], rel=1e-10)
    scaled = {"terms": [{**term, "weight": 2 * term["weight"]} for term in TWO_TERMS["terms"]]}
    assert tiny.step(scaled, None, 10**6)[1] == pytest.approx(2 * norm, rel=1e-10)


def test_gradients_of_terms_taken_apart_add_up_to_that_of_the_whole(tiny: Example) -> None:
    """gradnorm's first step has every learned weight at 1: K backward passes, the same gradient."""
    whole, norm = tiny.step(TWO_TERMS, None, 10**6)
    for cut in ((None, 10**6), (5, 1)):
        apart, apart_norm = tiny.step({**TWO_TERMS, "combine": "gradnorm"}, *cut)
        assert apart.loss == pytest.approx(whole.loss, rel=1e-10)
        assert apart_norm == pytest.approx(norm, rel=1e-10)


@pytest.mark.parametrize("combine", ["fixed", "uncertainty", "gradnorm", "pcgrad"])
@pytest.mark.parametrize("second", ["focal", {"type": "fgm", "epsilon": 1.0}], ids=["two losses", "adversarial"])
def test_a_scaled_step_has_the_same_loss_and_every_gradient_times_the_scale(
    tiny: Example, combine: str, second: Any
) -> None:
    loss = {"terms": [{"loss": "cross_entropy"}, {"loss": second}], "combine": combine}
    found = []
    for scaler in (UNSCALED, GradScaler("cpu", init_scale=1024.0)):
        torch.manual_seed(2)
        report, _ = tiny.step(loss, None, 10**6, scaler)
        assert tiny.objective is not None
        parameters = [*tiny.network.parameters(), *tiny.objective.parameters()]
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        found.append((report, gradients, tiny.objective.state_dict()))
    (plain, unscaled, state), (report, scaled, other_state) = found
    assert report.loss == pytest.approx(plain.loss, rel=1e-10)
    torch.testing.assert_close(scaled, [1024 * gradient for gradient in unscaled], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(other_state, state, rtol=1e-10, atol=0)


def head_step(
    labels: list[int], loss: Any, machine: Machine = MACHINE, scaler: GradScaler = UNSCALED
) -> tuple[StepReport, FeatureHead]:
    """A step over rows of one feature, 1.0, by a head that answers (8, −8)."""
    head = FeatureHead(1, 2, "linear", 1.0, 0.0)
    assert isinstance(head.head, nn.Linear)
    with torch.no_grad():
        head.head.weight.copy_(torch.tensor([[8.0], [-8.0]]))
        head.head.bias.zero_()
    features, targets = FeatureTable(np.ones((len(labels), 1), np.float32)), Targets(torch.tensor(labels))
    spec: Any = TypeAdapter(Loss).validate_python(loss)
    objective = Objective(spec, LossContext(labels=("no", "yes"), train_counts={"no": 1, "yes": 1}))
    batch = Batch(features, targets, np.arange(len(labels)))
    return backward_step(head, objective, batch, machine, None, 0.0, scaler), head


def test_rows_without_a_target_count_for_nothing() -> None:
    assert head_step([1, IGNORED, IGNORED, 1], "cross_entropy")[0].loss == pytest.approx(16, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        ([IGNORED] * 3, "cross_entropy"),
        ([IGNORED] * 3, {"terms": [{"id": "cross_entropy", "loss": "focal"}, {"loss": "entropy_min"}]}),
    ],
)
def test_a_step_in_which_every_label_is_ignored_names_the_term_and_its_rows(labels: list[int], loss: Any) -> None:
    said = "no row of this step counts towards 'cross_entropy'.*rows 1, 2, 3"
    with pytest.raises(ValueError, match=said):
        head_step(labels, loss)


@pytest.mark.parametrize("loss", ["cross_entropy", {"type": "focal", "gamma": 0}], ids=str)
def test_the_loss_of_a_sure_answer_is_not_lost_under_bfloat16(loss: Any) -> None:
    report, head = head_step([0], loss, replace(MACHINE, precision="bfloat16"))
    assert report.loss == pytest.approx(1.19e-7, rel=0.1)
    assert isinstance(head.head, nn.Linear)
    assert head.head.bias.grad is not None
    assert head.head.bias.grad[1] == pytest.approx(1.13e-7, rel=0.1)


def test_a_gradient_below_float16_survives_by_the_scale_alone() -> None:
    machine = replace(MACHINE, precision="float16")
    found = []
    for scaler in (UNSCALED, machine.grad_scaler()):
        report, head = head_step([0], {"type": "focal", "gamma": 0.2}, machine, scaler)
        assert isinstance(head.head, nn.Linear)
        assert head.head.bias.grad is not None
        found.append(float(head.head.bias.grad[1]) / scaler.get_scale())
        assert report.loss > 0
    assert found[0] == 0
    assert found[1] == pytest.approx(5e-9, rel=0.2)
