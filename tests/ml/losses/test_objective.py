from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from ml.losses.base import IGNORED, LossContext, Targets
from ml.losses.objective import Objective
from ml.models.outputs import Outputs
from ml.specs.losses.composition import Composition, Term
from ml.specs.losses.composition import Loss as AnyLoss
from tests.ml.losses.fakes import (
    ROWS,
    Case,
    all_cases,
    change_outputs,
    context_of,
    make_outputs,
    make_targets,
    requiring_grad,
)

ADDITIVE = [pytest.param(case, id=str(case)) for case in all_cases() if case.spec.is_additive]
CONTEXT = LossContext(labels=["a", "b", "c"], train_counts={"a": 6, "b": 3, "c": 1}, groups=2)


def _objective(loss: Any) -> Objective:
    return Objective(TypeAdapter(AnyLoss).validate_python(loss), CONTEXT)


def _outputs(rows: int = 4) -> Outputs:
    logits = torch.randn(rows, 3, dtype=torch.float64)
    return Outputs(logits, logits)


@pytest.mark.parametrize("case", ADDITIVE)
def test_the_shares_of_micro_batches_add_up_to_the_whole_step(case: Case):
    terms = [Term(id="task", loss=case.main)]
    if case.spec.auxiliary_for:
        terms.append(Term(id="further", loss=case.spec))
    objective = Objective(Composition(terms=terms), context_of(case))
    assert objective.is_additive
    targets = make_targets(case)
    if targets.labels.dtype == torch.int64:
        targets.labels[::5] = IGNORED
    denominators = objective.denominators(targets)
    wholes, gradients = [], []
    for cuts in ([ROWS], [5, 4, 3], [1] * ROWS):
        outputs = requiring_grad(make_outputs(case))
        total: Tensor = torch.zeros(len(terms), dtype=torch.float64)
        for rows in torch.arange(ROWS).split(cuts):
            part = change_outputs(outputs, lambda tensor, rows=rows: tensor[rows])
            shares = objective.shares(part, targets.take(rows), denominators)
            shares.sum().backward()
            total += shares.detach()
        wholes.append(total)
        gradients.append(outputs.logits.grad)
    for total, gradient in zip(wholes, gradients, strict=True):
        torch.testing.assert_close(total, wholes[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=1e-10)


def test_a_mean_of_means_is_another_number():
    """Mistake 1 of the catalogue: what it would be, if each micro-batch were divided by itself."""
    objective = _objective({"type": "cross_entropy", "class_weights": {"a": 1.0, "b": 2.0, "c": 5.0}})
    outputs, targets = _outputs(8), Targets(torch.tensor([0, 0, 0, 0, 2, 2, 1, 1]))
    whole = objective.shares(outputs, targets, objective.denominators(targets))
    means = []
    for rows in torch.arange(8).split(4):
        part = targets.take(rows)
        means.append(
            objective.shares(Outputs(outputs.logits[rows], outputs.logits[rows]), part, objective.denominators(part))
        )
    assert abs(float(whole) - float(torch.stack(means).mean())) > 1e-3


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("cross_entropy", "cross_entropy"),
        ({"terms": [{"loss": "entropy_min"}, {"id": "mine", "loss": "focal"}]}, "mine"),
    ],
)
def test_a_step_in_which_no_row_counts_is_refused_by_the_name_of_the_term(loss: Any, name: str):
    """Mistake 2 of the catalogue: torch gives NaN for the mean and 0 for the sum."""
    labels = [IGNORED] * 3
    with pytest.raises(ValueError, match=f"no row of this step counts towards '{name}'"):
        _objective(loss).denominators(Targets(torch.tensor(labels)))


def test_an_auxiliary_term_without_a_row_adds_nothing():
    objective = _objective({"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]})
    targets = Targets(torch.tensor([0, 1, 2]))
    denominators = objective.denominators(targets)
    assert denominators == [3, 0]
    assert objective.shares(_outputs(3), targets, denominators)[1] == 0


def test_terms_are_named_by_their_id_or_their_type():
    objective = _objective({"terms": [{"id": "mine", "loss": "cross_entropy"}, {"loss": "entropy_min"}]})
    assert objective.names == ["mine", "entropy_min"]
    assert _objective("focal").names == ["focal"]


def test_divisors_are_counted_on_the_cpu_wherever_the_objective_is():
    weighted = {"type": "ldam", "deferred_epoch": 1}
    objective = _objective({"terms": [{"loss": weighted}, {"loss": {"type": "fgm", "epsilon": 1.0}}]})
    targets = Targets(torch.tensor([0, 0, 1]))
    expected = []
    for epoch in (0, 1):
        objective.begin_epoch(epoch)
        expected.append(objective.denominators(targets))
    objective.on("meta")  # a device whose numbers nobody can ask for
    for epoch in (0, 1):
        objective.begin_epoch(epoch)
        assert objective.denominators(targets) == expected[epoch]
    assert expected[0] != expected[1]


def test_one_coupled_term_couples_the_step():
    assert _objective({"terms": [{"loss": "cross_entropy"}, {"loss": "entropy_min"}]}).is_additive
    assert not _objective({"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]}).is_additive


def test_needs_are_those_of_all_terms():
    terms = [{"loss": name} for name in ("cross_entropy", "r_drop", "supcon", "entropy_min")]
    assert _objective({"terms": terms}).needs == {"second_forward", "embeddings"}
    assert _objective("cross_entropy").needs == frozenset()


def test_the_main_loss_is_the_first_that_is_no_auxiliary_term():
    objective = _objective({"terms": [{"loss": "entropy_min"}, {"loss": "focal"}, {"loss": "cross_entropy"}]})
    assert objective.main is objective.losses[1]
    with pytest.raises(ValueError, match="'entropy_min' is an auxiliary term: add a task loss"):
        _ = _objective("entropy_min").main


def test_base_weights_follow_the_schedules():
    rising = {"schedule": "linear", "from": 0.0, "to": 2.0, "start": 0.5}
    objective = _objective({"terms": [{"loss": "cross_entropy"}, {"loss": "entropy_min", "weight": rising}]})
    found = [objective.base_weights(progress).tolist() for progress in (0, 0.5, 0.75, 1)]
    assert found == [[1, 0], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("loss", "factor"), [("mse", 0.5), ("huber", 0.5), ("pinball", 0.5), ("poisson_nll", 0.5), ("cross_entropy", 1.0)]
)
def test_uncertainty_halves_the_losses_of_regression(loss: str, factor: float):
    objective = _objective({"terms": [{"id": "x", "loss": loss}, {"id": "y", "loss": loss}], "combine": "uncertainty"})
    assert objective.rule.weights(objective.base_weights(0)).tolist() == [factor, factor]


def test_epochs_are_told_to_every_term():
    class Told(torch.nn.Module):
        epochs: list[int]

        def begin_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    objective = _objective("cross_entropy")
    told = Told()
    told.epochs = []
    objective.losses = torch.nn.ModuleList([told])
    objective.begin_epoch(3)
    assert told.epochs == [3]


def test_the_state_of_an_objective_survives_a_checkpoint():
    spec = {"terms": [{"loss": "group_dro"}, {"loss": "entropy_min"}], "combine": "normalized"}
    objective = _objective(spec)
    targets = Targets(torch.tensor([0, 1, 2, 0]), groups=torch.tensor([0, 1, 0, 0]))
    shares = objective.shares(_outputs(), targets, objective.denominators(targets))
    objective.rule.observe(shares.detach())
    fresh = _objective(spec)
    fresh.load_state_dict(objective.state_dict())
    for name, value in objective.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)
    base = objective.base_weights(0)
    torch.testing.assert_close(fresh.rule.weights(base), objective.rule.weights(base), rtol=0, atol=0)
    assert not torch.equal(fresh.rule.weights(base), base)
