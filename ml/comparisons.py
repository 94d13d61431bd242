"""A comparison meets a dataset: each loss becomes a resolved job over the same split, or one a fold. Torch-free."""

from dataclasses import dataclass, replace

from ml.data.splits import Part
from ml.resolve import Cells, Resolved, resolve, resolve_folds, resolve_metric
from ml.specs.comparison import Comparison
from ml.specs.errors import Problem, SpecError, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.losses.composition import Loss


@dataclass(frozen=True)
class ResolvedComparison:
    """A comparison with nothing left open."""

    spec: Comparison
    arms: tuple[Resolved, ...]  # one for each loss, with the first seed, on the first fold
    folds: tuple[tuple[Resolved, ...], ...]  # of each loss, every fold; empty without folds
    part: Part  # what the losses are measured on

    @property
    def metric(self) -> str:
        """What decides."""
        assert self.spec.metric is not None, "a resolved comparison has a metric"
        return self.spec.metric

    @property
    def seeds(self) -> list[int]:
        """The seed of each run of a loss."""
        return [self.spec.training.seed + run for run in range(self.spec.runs)]

    @property
    def warnings(self) -> list[str]:
        """What every arm warns of, once, and what some arms warn of, by name."""
        found: dict[str, list[str]] = {}
        for name, arm in zip(self.spec.names(), self.arms, strict=True):
            for warning in arm.warnings:
                found.setdefault(warning, []).append(name)
        said = [w if len(names) == len(self.arms) else f"{', '.join(names)}: {w}" for w, names in found.items()]
        if self.part == Part.VALIDATION:
            said.append(
                "there is no test part: the losses are measured on the validation part, to which calibration, "
                "thresholds and early stopping were fitted as well. Give split.test a share."
            )
        return said

    def arm(self, index: int, seed: int) -> Resolved:
        """One loss with one of the seeds, on the fold that goes with it."""
        arm = self.folds[index][self.seeds.index(seed)] if self.folds else self.arms[index]
        training = arm.spec.training.model_copy(update={"seed": seed})
        return replace(arm, spec=arm.spec.model_copy(update={"training": training}))


def resolve_comparison(
    comparison: Comparison, facts: DatasetFacts, base: BaseFacts, cells: Cells
) -> ResolvedComparison:
    """Fill in and check a comparison, as `resolve` does a job. Raises SpecError."""
    _check_runs(comparison)
    runs = tuple(
        _resolve_runs(comparison, place, loss, facts, base, cells) for place, loss in enumerate(comparison.losses)
    )
    arms = tuple(own[0] for own in runs)
    names = comparison.names()
    if len({arm.state.type for arm in arms}) > 1:
        tasks = ", ".join(f"{name}: {arm.state.type}" for name, arm in zip(names, arms, strict=True))
        raise refuse(
            "/task",
            f"the losses would be for different tasks ({tasks}), and only answers to the same question can be "
            "compared. Set `task`, or leave out the losses that are for another.",
            "different_tasks",
        )
    if len({arm.spec.split.group_column for arm in arms}) > 1:
        apart = ", ".join(name for name, arm in zip(names, arms, strict=True) if arm.spec.split.group_column is None)
        raise refuse(
            "/split/group_column",
            f"{apart} would have rows of each group '{facts.columns.group}' in every part, and the other losses whole "
            "groups: they would not be measured on the same rows. Set `split.group_column`, which holds for all.",
            "different_splits",
        )
    first = arms[0]
    part = Part.TEST if (first.parts == Part.TEST).any() else Part.VALIDATION
    if not (first.parts == part).any():
        raise refuse("/split", "nothing is left to measure the losses on. Give split.test a share.", "no_test_rows")
    metric = comparison.metric
    for place, (arm, name) in enumerate(zip(arms, names, strict=True)):
        try:
            metric = resolve_metric(metric, arm.state, "/metric")
        except SpecError as error:
            raise refuse("/metric", f"{name} (loss {place}): {error.problems[0].message}", "unknown_metric") from error
    resolved = comparison.model_copy(
        update={
            "task": first.spec.task,
            "split": first.spec.split,
            "tuning": first.spec.tuning,
            "training": first.spec.training,
            "losses": [arm.spec.loss for arm in arms],
            "metric": metric,
            "seeds": None if comparison.folds else comparison.runs,
        }
    )
    return ResolvedComparison(resolved, arms, runs if comparison.folds else (), part)


def _check_runs(comparison: Comparison) -> None:
    """Seeds or folds; and one loss alone can only be cross-validated."""
    if comparison.folds is None:
        if len(comparison.losses) == 1:
            raise refuse(
                "/losses",
                "there is one loss, and a comparison needs two. Add another, or set `folds` to cross-validate it.",
                "one_loss",
            )
        return
    if comparison.seeds is not None:
        raise refuse(
            "/seeds",
            f"'seeds' is {comparison.seeds} and 'folds' is {comparison.folds}: the runs of a loss differ by the one or "
            "the other, and every fold has a seed of its own. Leave `seeds` out.",
            "seeds_and_folds",
        )
    if "test" in comparison.split.model_fields_set and comparison.split.test > 0:
        raise refuse(
            "/split/test",
            f"'test' is {comparison.split.test:g}, but the {comparison.folds} folds are the test parts. Leave it out.",
            "test_and_folds",
        )


def _resolve_runs(
    comparison: Comparison, place: int, loss: Loss, facts: DatasetFacts, base: BaseFacts, cells: Cells
) -> tuple[Resolved, ...]:
    """One loss as a job, or one a fold; what is wrong with the loss is said of its place in the list."""
    try:
        job = comparison.job(loss)
        if comparison.folds:
            return resolve_folds(job, facts, base, cells, comparison.folds)
        return (resolve(job, facts, base, cells),)
    except SpecError as error:
        raise SpecError([_moved(problem, place) for problem in error.problems]) from error


def _moved(problem: Problem, place: int) -> Problem:
    if problem.pointer != "/loss" and not problem.pointer.startswith("/loss/"):
        return problem
    return replace(problem, pointer=f"/losses/{place}{problem.pointer.removeprefix('/loss')}")
