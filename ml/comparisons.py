"""A comparison meets a dataset: each loss becomes a resolved job over the same split. Torch-free."""

from dataclasses import dataclass, replace

from ml.data.splits import Part
from ml.resolve import Cells, Resolved, resolve, resolve_metric
from ml.specs.comparison import Comparison
from ml.specs.errors import Problem, SpecError, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.losses.composition import Loss


@dataclass(frozen=True)
class ResolvedComparison:
    """A comparison with nothing left open."""

    spec: Comparison
    arms: tuple[Resolved, ...]  # one for each loss, with the first seed
    part: Part  # what the losses are measured on

    @property
    def metric(self) -> str:
        """What decides."""
        assert self.spec.metric is not None, "a resolved comparison has a metric"
        return self.spec.metric

    @property
    def seeds(self) -> list[int]:
        """The seed of each run of a loss."""
        return [self.spec.training.seed + i for i in range(self.spec.seeds)]

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
        """One loss with one of the seeds."""
        arm = self.arms[index]
        training = arm.spec.training.model_copy(update={"seed": seed})
        return replace(arm, spec=arm.spec.model_copy(update={"training": training}))


def resolve_comparison(
    comparison: Comparison, facts: DatasetFacts, base: BaseFacts, cells: Cells
) -> ResolvedComparison:
    """Fill in and check a comparison, as `resolve` does a job. Raises SpecError."""
    arms = tuple(
        _resolve_arm(comparison, place, loss, facts, base, cells) for place, loss in enumerate(comparison.losses)
    )
    names = comparison.names()
    if len({arm.state.type for arm in arms}) > 1:
        tasks = ", ".join(f"{name}: {arm.state.type}" for name, arm in zip(names, arms, strict=True))
        raise refuse(
            "/task",
            f"the losses would be for different tasks ({tasks}), and only answers to the same question can be "
            "compared. Set `task`, or leave out the losses that are for another.",
            "different_tasks",
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
        }
    )
    return ResolvedComparison(resolved, arms, part)


def _resolve_arm(
    comparison: Comparison, place: int, loss: Loss, facts: DatasetFacts, base: BaseFacts, cells: Cells
) -> Resolved:
    """One loss as a job; what is wrong with the loss is said of its place in the list."""
    try:
        return resolve(comparison.job(loss), facts, base, cells)
    except SpecError as error:
        raise SpecError([_moved(problem, place) for problem in error.problems]) from error


def _moved(problem: Problem, place: int) -> Problem:
    if problem.pointer != "/loss" and not problem.pointer.startswith("/loss/"):
        return problem
    return replace(problem, pointer=f"/losses/{place}{problem.pointer.removeprefix('/loss')}")
