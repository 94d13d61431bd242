"""What a job was asked to do, read back from its row, and which models of its project that takes. It knows no SQL."""

from app.db.tables import JobRow
from ml.specs.bulk import Bulk, ModelEvaluation, PredictionBatch
from ml.specs.comparison import Comparison
from ml.specs.job import JobSpec
from ml.specs.losses.composition import teachers_of

AnySpec = JobSpec | Comparison | Bulk

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
