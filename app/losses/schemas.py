"""Bodies of losses."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ml.specs.losses.base import LossSpec, TaskType
from ml.tasks.readings import has_probabilities as reads_probabilities


class LossBody(BaseModel):
    """A loss, and how to ask for it."""

    model_config = ConfigDict(serialize_by_alias=True)

    id: str = Field(description="The same as `type`.")
    object: Literal["loss"] = "loss"
    type: str = Field(examples=["focal"])
    title: str
    description: str = Field(description="What it does, in a sentence.")
    formula: str
    tasks: list[TaskType]
    is_auxiliary: bool = Field(description="It stands beside a task's loss, in a composition.")
    needs: list[str] = Field(description="What it wants besides logits, e.g. groups or a second forward pass.")
    has_probabilities: dict[str, bool] = Field(description="By task: whether a model's scores are probabilities.")
    paper: str
    schema_: dict[str, Any] = Field(alias="schema", description="JSON Schema of the loss in a job spec.")
    defaults: dict[str, Any]
    example: dict[str, Any] = Field(description="Runs as it stands in a job spec's `loss`, or in a term if auxiliary.")


def loss_body(name: str, spec: type[LossSpec]) -> LossBody:
    """The body of a spec class."""
    defaults = {
        field: info.get_default(call_default_factory=True)
        for field, info in spec.model_fields.items()
        if field != "type" and not info.is_required()
    }
    return LossBody(
        id=name,
        type=name,
        title=spec.title,
        description=(spec.__doc__ or "").strip(),
        formula=spec.formula,
        tasks=list(spec.tasks()),
        is_auxiliary=bool(spec.auxiliary_for),
        needs=sorted(spec.needs),
        has_probabilities={task: reads_probabilities(reading) for task, reading in spec.readings.items()},
        paper=spec.paper,
        schema=spec.model_json_schema(),
        defaults=defaults,
        example=spec.example(),
    )
