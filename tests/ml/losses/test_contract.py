"""What holds for every loss, whichever it is. A new loss is tested here by being in the table."""

import inspect
import json

import pytest
import torch
from pydantic import TypeAdapter

from ml.losses.base import IGNORED, Targets
from ml.losses.registry import LOSSES
from ml.specs.losses.composition import Loss as AnyLossSpec
from ml.specs.losses.table import LOSS_SPECS
from tests.ml.losses.fakes import (
    ROWS,
    Case,
    all_cases,
    build,
    change_outputs,
    leaves_of,
    make_outputs,
    make_targets,
    requiring_grad,
)

CASES = [pytest.param(case, id=str(case)) for case in all_cases()]
ADDITIVE = [pytest.param(case, id=str(case)) for case in all_cases() if case.spec.is_additive]
COUPLED = [pytest.param(case, id=str(case)) for case in all_cases() if not case.spec.is_additive]
ONE_LABEL = [
    pytest.param(case, id=str(case))
    for case in all_cases()
    if case.task in ("text_classification", "ordinal") and not case.is_soft
]
TYPES = sorted(LOSS_SPECS)


def test_every_spec_has_a_loss_and_every_loss_a_spec():
    assert set(LOSS_SPECS) == set(LOSSES)


@pytest.mark.parametrize("loss", TYPES)
def test_a_loss_takes_the_fields_of_its_spec_and_has_no_defaults_of_its_own(loss):
    parameters = inspect.signature(LOSSES[loss].__init__).parameters
    own = {name: p for name, p in parameters.items() if name not in ("self", "args", "kwargs")}
    assert set(own) - set(LOSSES[loss].wants) == set(LOSS_SPECS[loss].model_fields) - {"type"}
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in own.values())


@pytest.mark.parametrize("loss", TYPES)
def test_a_loss_lies_in_the_file_of_its_name(loss):
    assert LOSSES[loss].__module__ == f"ml.losses.{loss}"
    assert LOSSES[loss].__name__.lower() == loss.replace("_", "").removesuffix("loss") + "loss"


@pytest.mark.parametrize("loss", TYPES)
def test_a_loss_is_documented_by_the_template(loss):
    text = LOSSES[loss].__doc__ or ""
    places = [text.find(heading) for heading in ("Formula:", "Symbols:", "Shapes:", "Choose it", "Paper:")]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("loss", TYPES)
def test_a_spec_says_what_it_is(loss):
    spec = LOSS_SPECS[loss]
    assert spec.title and spec.formula and spec.paper and spec.tasks()
    assert not (spec.readings and spec.auxiliary_for)
    assert (spec.__doc__ or "").strip().endswith(".")


@pytest.mark.parametrize("loss", TYPES)
def test_every_field_of_a_spec_is_explained(loss):
    properties = LOSS_SPECS[loss].model_json_schema()["properties"]
    assert [name for name in properties if name != "type" and not properties[name].get("description")] == []


@pytest.mark.parametrize("loss", TYPES)
def test_the_example_of_a_spec_is_valid_and_survives_json(loss):
    union = TypeAdapter(AnyLossSpec)
    spec = union.validate_python(LOSS_SPECS[loss].example())
    assert type(spec) is LOSS_SPECS[loss]
    assert union.validate_json(json.dumps(spec.model_dump(mode="json"))) == spec


def test_the_schema_of_all_losses_builds():
    text = json.dumps(TypeAdapter(AnyLossSpec).json_schema())
    assert [loss for loss in TYPES if f'"{loss}"' not in text] == []


@pytest.mark.parametrize("case", CASES)
def test_numerators_and_denominators_are_one_a_row(case: Case):
    loss, targets = build(case), make_targets(case)
    numerators, denominators = loss.numerators(make_outputs(case), targets), loss.denominators(targets)
    assert numerators.shape == denominators.shape == (ROWS,)
    assert numerators.dtype == denominators.dtype == torch.float64
    assert (denominators >= 0).all()
    assert denominators.sum() > 0


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_reaches_the_model(case: Case):
    outputs = requiring_grad(make_outputs(case))
    build(case).numerators(outputs, make_targets(case)).sum().backward()
    gradients = [leaf.grad for leaf in leaves_of(outputs) if leaf.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("sign", ["mixed", "up", "down"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_extreme_outputs_give_finite_losses_and_gradients(case: Case, dtype: torch.dtype, sign: str):
    shape = {"mixed": torch.sign, "up": torch.ones_like, "down": lambda tensor: -torch.ones_like(tensor)}[sign]
    outputs = requiring_grad(change_outputs(make_outputs(case), lambda tensor: 200 * shape(tensor)), dtype)
    numerators = build(case).numerators(outputs.in_full_precision(), make_targets(case))
    numerators.sum().backward()
    assert numerators.dtype == torch.float32
    assert numerators.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves_of(outputs) if leaf.grad is not None)


@pytest.mark.parametrize("case", ADDITIVE)
def test_rows_of_an_additive_loss_know_nothing_of_each_other(case: Case):
    loss, outputs, targets = build(case), make_outputs(case), make_targets(case)
    whole, divisors = loss.numerators(outputs, targets), loss.denominators(targets)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    moved = loss.numerators(change_outputs(outputs, lambda tensor: tensor[order]), targets.take(order))
    torch.testing.assert_close(moved, whole[order], rtol=0, atol=1e-12)
    for cut in (order[:1], order[1:5], order[5:]):
        part = loss.numerators(change_outputs(outputs, lambda tensor, cut=cut: tensor[cut]), targets.take(cut))
        torch.testing.assert_close(part, whole[cut], rtol=0, atol=1e-12)
        torch.testing.assert_close(loss.denominators(targets.take(cut)), divisors[cut], rtol=0, atol=0)


@pytest.mark.parametrize("case", COUPLED)
def test_rows_of_a_coupled_loss_do_know_of_each_other(case: Case):
    loss, outputs, targets = build(case), make_outputs(case), make_targets(case)
    few = torch.arange(5)  # of uneven groups
    part = loss.numerators(change_outputs(outputs, lambda tensor: tensor[few]), targets.take(few))
    assert not torch.allclose(part, loss.numerators(outputs, targets)[few])


@pytest.mark.parametrize("case", COUPLED)
def test_the_order_of_the_rows_of_a_coupled_loss_is_of_no_matter(case: Case):
    loss, outputs, targets = build(case), make_outputs(case), make_targets(case)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    moved = loss.numerators(change_outputs(outputs, lambda tensor: tensor[order]), targets.take(order))
    torch.testing.assert_close(moved, loss.numerators(outputs, targets)[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ONE_LABEL)
def test_an_ignored_row_is_as_good_as_absent(case: Case):
    loss, known = build(case), make_targets(case)
    ignored = torch.arange(ROWS) % 3 == 0
    targets = Targets(known.labels.masked_fill(ignored, IGNORED), known.groups, known.teacher)
    outputs = requiring_grad(make_outputs(case))
    numerators = loss.numerators(outputs, targets)
    assert (numerators[ignored] == 0).all()
    assert (loss.denominators(targets)[ignored] == 0).all()
    numerators.sum().backward()
    gradients = [leaf.grad for leaf in leaves_of(outputs) if leaf.grad is not None]
    assert all((gradient[ignored] == 0).all() for gradient in gradients)
    kept = torch.arange(ROWS)[~ignored]
    alone = loss.numerators(change_outputs(make_outputs(case), lambda tensor: tensor[kept]), targets.take(kept))
    shares = alone.sum() / loss.denominators(targets.take(kept)).sum()
    torch.testing.assert_close(numerators.detach().sum() / loss.denominators(targets).sum(), shares)
