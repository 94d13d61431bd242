"""How a spec becomes a loss: values by label name arrive in the order of the labels."""

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from ml.losses.base import LossContext
from ml.losses.registry import build_loss
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import Loss as AnyLossSpec
from ml.specs.losses.table import LOSS_SPECS
from tests.ml.losses.checks import rows_of

LABELS = ("a", "b", "c")
WEIGHTS = {"c": 3.0, "a": 0.25, "b": 1.0}
CONTEXT = LossContext(labels=LABELS, train_counts={"a": 2, "b": 30, "c": 8})


def per_label_fields(spec: type[LossSpec]) -> list[str]:
    """The fields that take a weight for each label."""
    return [name for name, info in spec.model_fields.items() if "dict[" in str(info.annotation)]


WEIGHTED = [(loss, field) for loss, spec in LOSS_SPECS.items() for field in per_label_fields(spec)]


def test_some_losses_take_weights_by_label() -> None:
    assert len(WEIGHTED) >= 3


@pytest.mark.parametrize(("loss", "field"), WEIGHTED)
def test_weights_reach_the_label_they_are_named_for(loss: str, field: str) -> None:
    def rows(**fields: Any) -> torch.Tensor:
        spec = LOSS_SPECS[loss].model_validate({"type": loss, **fields})
        logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        labels = torch.arange(12) % 3
        if "multi_label" in spec.readings:
            labels = torch.nn.functional.one_hot(labels, 3).double()
            logits = torch.where(labels > 0, logits, -50.0)  # what it costs not to be of another label is nothing
        return rows_of(build_loss(spec, CONTEXT), logits, labels)

    share = rows(**{field: WEIGHTS}) / rows()
    expected = torch.tensor([WEIGHTS[LABELS[i % 3]] for i in range(12)], dtype=torch.float64)
    torch.testing.assert_close(share, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", sorted(LOSS_SPECS))
def test_the_name_alone_is_enough_where_no_field_is_required(loss: str) -> None:
    union = TypeAdapter[Any](AnyLossSpec)
    if LOSS_SPECS[loss].required_example:
        with pytest.raises(ValidationError, match="required"):
            union.validate_python(loss)
    else:
        assert union.validate_python(loss) == LOSS_SPECS[loss](type=loss)
        assert get_args(LOSS_SPECS[loss].model_fields["type"].annotation) == (loss,)
