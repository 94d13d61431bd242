"""What a job was asked to do, read back from its row, and which models of its project that takes. It knows no SQL."""

from collections.abc import Sequence
from typing import Any, TypeVar

from app.db.tables import JobRow
from ml.specs.bulk import Bulk, ModelEvaluation, PredictionBatch
from ml.specs.comparison import Comparison
from ml.specs.job import JobSpec
from ml.specs.losses.composition import teachers_of

AnySpec = JobSpec | Comparison | Bulk
Asked = TypeVar("Asked", bound=AnySpec)

_SPECS: dict[str, type[AnySpec]] = {  # of other kinds: JobSpec
    "comparison": Comparison,
    "prediction_batch": PredictionBatch,
    "evaluation": ModelEvaluation,
}


def setup_of(job: JobRow) -> AnySpec:
    """The spec that a job was queued with."""
    return _SPECS.get(job.kind, JobSpec).model_validate(job.spec)


def teachers_in(setup: AnySpec) -> dict[str, str]:
    """Ids of the models that its losses learn from, by JSON pointer."""
    if isinstance(setup, Bulk):
        return {}
    if isinstance(setup, Comparison):
        losses = {f"/losses/{place}": loss for place, loss in enumerate(setup.losses)}
    else:
        losses = {} if setup.loss is None else {"/loss": setup.loss}
    return {
        pointer + place: teacher for pointer, loss in losses.items() for place, teacher in teachers_of(loss).items()
    }


def models_of(setup: AnySpec) -> dict[str, str]:
    """Ids of the models of the project that a job needs, by JSON pointer: its teachers, and the one it starts from or
    puts to a dataset."""
    start = {"/model": setup.model} if setup.model.startswith("mdl_") else {}
    return start | teachers_in(setup)


def with_model(setup: Asked, pointer: str, model_id: str) -> Asked:
    """The same with another model at a JSON pointer of `models_of`."""
    replaced: Asked = _replace(setup, pointer.split("/")[1:], model_id)
    return replaced


def _replace(node: Any, path: Sequence[str], value: str) -> Any:
    if not path:
        return value
    step, *rest = path
    if isinstance(node, list | tuple):
        place = int(step)
        return type(node)((*node[:place], _replace(node[place], rest, value), *node[place + 1 :]))
    return node.model_copy(update={step: _replace(getattr(node, step), rest, value)})
