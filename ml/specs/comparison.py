"""The comparison spec: several losses, and everything else as a job has it. The body of `POST /v1/comparisons`."""

from typing import Any

from pydantic import Field, field_serializer

from ml.specs.evaluation import Evaluation
from ml.specs.job import JobSpec, Setup
from ml.specs.losses.composition import Composition, Loss, term_id, terms_of
from ml.specs.losses.table import AnyLoss

SEEDS = 5  # where neither these nor folds are given


class Comparison(Setup):
    """Losses trained on the same split with the same seeds, or on the same folds.

    Only `dataset` and `losses` are required.
    """

    losses: list[Loss] = Field(
        min_length=1,
        max_length=12,
        description="Each as a job's `loss`. The first is what the others are held against; with folds it may be the "
        "only one.",
    )
    metric: str | None = Field(
        None, description="What decides. Null: macro_f1; regression: rmse; ordinal: qwk. The others are reported too."
    )
    seeds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="Runs of each loss on one split, with the seeds from training.seed upwards: the same head, order "
        "and dropout for every loss. Null: 5, or none where there are folds.",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="Cross-validation in the place of seeds: the rows that the dataset's split column doesn't hold out "
        "as test are cut into so many folds, stratified and grouped as `split` says and drawn from its seed. Each run "
        "of a loss is tested on another fold and trained on the rest, less split.validation of it.",
    )
    evaluation: Evaluation | None = Field(None, description="Null: as each loss allows.")

    @field_serializer("evaluation")
    def _as_given(self, evaluation: Evaluation | None) -> dict[str, Any] | None:
        # A default that was written out would be asked for by name, also of the losses it does not apply to.
        return None if evaluation is None else evaluation.model_dump(exclude_unset=True)

    @property
    def runs(self) -> int:
        """Of each loss."""
        return self.folds or self.seeds or SEEDS

    def names(self) -> list[str]:
        """What each loss is called in the table: its type, its terms joined by +, numbered where there are several."""
        plain = ["+".join(term_id(term) for term in terms_of(loss)) for loss in self.losses]
        return [name if (n := plain[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(plain)]

    def job(self, loss: AnyLoss | Composition) -> JobSpec:
        """The job that trains one of the losses with the first seed."""
        seed = self.training.seed if self.split.seed is None else self.split.seed
        given: dict[str, Any] = {name: getattr(self, name) for name in Setup.model_fields}
        # Where there are folds, they are the test parts.
        given["split"] = self.split.model_copy(update={"seed": seed} | ({"test": 0.0} if self.folds else {}))
        if self.evaluation is not None:
            given["evaluation"] = self.evaluation
        return JobSpec(**given, loss=loss)
