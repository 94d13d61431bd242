"""Every loss spec there is, and the union of them. A new spec class in one of the families below is in it at once."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from ml.specs.losses import auxiliary, multi_label, ordinal, regression, single_label
from ml.specs.losses.base import LossSpec, TaskType

_FAMILIES = (single_label, multi_label, regression, auxiliary, ordinal)

LOSS_SPECS: dict[str, type[LossSpec]] = {
    spec.model_fields["type"].annotation.__args__[0]: spec  # type: ignore[union-attr]
    for family in _FAMILIES
    for spec in vars(family).values()
    if isinstance(spec, type) and issubclass(spec, LossSpec) and spec is not LossSpec
}

if TYPE_CHECKING:
    AnyLoss = LossSpec
else:
    AnyLoss = Annotated[Union[tuple(LOSS_SPECS.values())], Field(discriminator="type")]  # noqa: UP007 - of a tuple


def losses_for(task: TaskType) -> list[str]:
    """The types of the losses that are valid for a task, auxiliary ones left out."""
    return [name for name, spec in LOSS_SPECS.items() if task in spec.readings]
