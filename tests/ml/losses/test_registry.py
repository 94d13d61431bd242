"""What every loss in the table keeps to. No loss is named here: a new one is covered by its line in the table."""

import inspect
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ml.losses.base import IGNORED, Loss
from ml.losses.registry import LOSSES, PER_LABEL_FIELDS, build_loss
from ml.models.outputs import Outputs
from ml.specs.job import JobSpec
from ml.specs.losses import Loss as AnyLossSpec
from ml.specs.losses import LossSpec, TaskType

LABELS = ("a", "b", "c")
COUNTS = {"a": 2, "b": 30, "c": 8}
WEIGHTS = {"a": 0.25, "b": 1.0, "c": 3.0}

every_loss = pytest.mark.parametrize("spec_class", LOSSES, ids=lambda spec_class: spec_class.__name__)


def type_of(spec_class: type[LossSpec]) -> str:
    """The name a user asks for it by."""
    (name,) = get_args(spec_class.model_fields["type"].annotation)
    return str(name)


def specs_of(spec_class: type[LossSpec]) -> list[LossSpec]:
    """The spec as it is by default, and with a weight for each label where it takes some."""
    weights: dict[str, Any] = {name: WEIGHTS for name in PER_LABEL_FIELDS if name in spec_class.model_fields}
    bodies = [{}, weights] if weights else [{}]
    return [spec_class.model_validate({"type": type_of(spec_class), **body}) for body in bodies]


def losses_of(spec_class: type[LossSpec]) -> list[Loss]:
    return [build_loss(spec, LABELS, COUNTS) for spec in specs_of(spec_class)]


def example(rows: int = 40) -> tuple[Tensor, Tensor]:
    """Logits (N, 3) in float64 and targets (N,), one of them ignored."""
    generator = torch.Generator().manual_seed(11)
    targets = torch.randint(0, len(LABELS), (rows,), generator=generator)
    targets[1] = IGNORED
    return torch.randn(rows, len(LABELS), generator=generator, dtype=torch.float64) * 2, targets


def test_the_table_holds_exactly_the_losses_a_spec_may_ask_for() -> None:
    asked = get_args(get_args(AnyLossSpec)[0])
    assert set(asked) == set(LOSSES)


@every_loss
def test_a_loss_takes_the_fields_of_its_spec_and_has_no_defaults_of_its_own(spec_class: type[LossSpec]) -> None:
    arguments = list(inspect.signature(LOSSES[spec_class]).parameters.values())
    assert {argument.name for argument in arguments} == set(spec_class.model_fields) - {"type"}
    for argument in arguments:
        assert argument.kind is inspect.Parameter.KEYWORD_ONLY, argument.name
        assert argument.default is inspect.Parameter.empty, argument.name


@every_loss
def test_a_loss_says_what_it_is(spec_class: type[LossSpec]) -> None:
    assert spec_class.title.strip()
    assert spec_class.formula.strip()
    assert spec_class.paper.strip()
    assert spec_class.tasks
    assert set(spec_class.tasks) <= set(get_args(TaskType))
    told = inspect.getdoc(LOSSES[spec_class]) or ""
    places = [told.find(mark) for mark in ("Formula:", "Symbols:", "Shapes:", "Choose it", "Paper:")]
    assert -1 not in places
    assert places == sorted(places)


@every_loss
def test_every_parameter_has_a_default_so_that_the_name_alone_is_enough(spec_class: type[LossSpec]) -> None:
    spec = JobSpec.model_validate({"dataset": "ds_1", "loss": type_of(spec_class)})
    assert spec.loss == JobSpec.model_validate({"dataset": "ds_1", "loss": {"type": type_of(spec_class)}}).loss
    assert type(spec.loss) is spec_class


@every_loss
def test_a_spec_survives_json(spec_class: type[LossSpec]) -> None:
    for spec in specs_of(spec_class):
        assert spec_class.model_validate_json(spec.model_dump_json()) == spec
        assert spec_class.model_validate(spec.model_dump()) == spec


@every_loss
def test_one_number_a_row_above_and_below(spec_class: type[LossSpec]) -> None:
    logits, targets = example()
    for loss in losses_of(spec_class):
        assert loss.numerators(Outputs(logits), targets).shape == targets.shape
        assert loss.denominators(targets).shape == targets.shape


@every_loss
def test_the_order_of_rows_changes_nothing(spec_class: type[LossSpec]) -> None:
    logits, targets = example()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    for loss in losses_of(spec_class):
        whole = loss.numerators(Outputs(logits), targets)
        torch.testing.assert_close(loss.numerators(Outputs(logits[order]), targets[order]), whole[order])
        torch.testing.assert_close(loss.denominators(targets[order]), loss.denominators(targets)[order])


@every_loss
@pytest.mark.parametrize("rows_at_once", [1, 7, 16])
def test_loss_and_gradient_add_up_however_the_rows_are_cut(spec_class: type[LossSpec], rows_at_once: int) -> None:
    logits, targets = example()
    for loss in losses_of(spec_class):
        divisor = loss.denominators(targets).sum()
        whole = logits.clone().requires_grad_()
        value = loss.numerators(Outputs(whole), targets).sum() / divisor
        value.backward()

        cut, total = logits.clone().requires_grad_(), 0.0
        for some in torch.arange(len(targets)).split(rows_at_once):
            share = loss.numerators(Outputs(cut[some]), targets[some]).sum() / divisor
            share.backward()
            total += share.item()
        assert total == pytest.approx(value.item(), rel=1e-12)
        torch.testing.assert_close(cut.grad, whole.grad, rtol=1e-12, atol=1e-15)


@every_loss
def test_a_row_without_a_target_counts_neither_above_nor_below(spec_class: type[LossSpec]) -> None:
    logits, targets = example()
    for loss in losses_of(spec_class):
        for answer in (loss.numerators(Outputs(logits), targets), loss.denominators(targets)):
            assert (answer == 0).tolist() == (targets == IGNORED).tolist()


@every_loss
def test_the_gradient_is_that_of_the_value(spec_class: type[LossSpec]) -> None:
    logits, targets = example(6)
    logits.requires_grad_()
    for loss in losses_of(spec_class):
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss.numerators(Outputs(z), targets), (logits,))


@every_loss
def test_weights_reach_the_label_they_are_named_for(spec_class: type[LossSpec]) -> None:
    if len(specs_of(spec_class)) == 1:
        pytest.skip("takes no weights by label")
    logits, targets = example()
    plain, weighted = losses_of(spec_class)
    share = weighted.numerators(Outputs(logits), targets) / plain.numerators(Outputs(logits), targets)
    for i, label in enumerate(LABELS):
        torch.testing.assert_close(
            share[targets == i], torch.full_like(share[targets == i], WEIGHTS[label]), rtol=1e-9, atol=0
        )
