"""Several losses, each trained with the same seeds on the same split or folds: what a comparison does, run by run.

A finished run is written down as a checkpoint is, so a comparison that is stopped goes on after its last finished run.
It knows no service; how sure a difference is, is `ml.evaluation.paired`'s to say.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.artifact.manifest import newest_verified, publish_folder
from ml.comparisons import ResolvedComparison
from ml.data.tokens import FeatureTable
from ml.evaluation import paired
from ml.models.classifier import load_encoder
from ml.resolve import Resolved
from ml.tasks.build import build_task
from ml.training.checkpoint import KEPT, differences
from ml.training.early_stopping import LOWER_IS_BETTER
from ml.training.errors import NonFiniteLossError, StoppedError
from ml.training.fit import Fitted, fit
from ml.training.machine import Machine
from ml.training.prepare import Corpus, Prepared, assemble
from ml.training.report import ArmReport, ComparisonReport, DifferenceReport, Figure
from ml.training.run import RunDirectory

SIGNIFICANT = 0.05
RUNS = "runs.json"
ANSWERS = "answers.npz"


@dataclass
class Run:
    """What one loss came to under one seed, or on one fold."""

    arm: int
    seed: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    unfitted: dict[str, float] = field(default_factory=dict)  # before calibration and thresholds
    without: list[float | None] = field(default_factory=list)  # the deciding metric, a group of rows left out
    error: str | None = None
    answers: NDArray[Any] | None = None  # (2, N, …) what was answered on the fold's N rows, and what is true


def compare(
    run: RunDirectory,
    corpus: Corpus,
    comparison: ResolvedComparison,
    machine: Machine,
    fingerprint: dict[str, Any],
    stop: Callable[[], bool],
) -> ComparisonReport:
    """Make every run that is not made yet, and put the table together.

    Raises StoppedError once `stop()` is true. A loss that becomes NaN or infinite is a result, and ends its arm alone.
    """
    return report(comparison, _Runs(run, corpus, comparison, machine, fingerprint, stop).make())


class _Runs:
    """The runs of a comparison, seed by seed or fold by fold: one that is half done is a fair one of fewer."""

    def __init__(
        self,
        run: RunDirectory,
        corpus: Corpus,
        comparison: ResolvedComparison,
        machine: Machine,
        fingerprint: dict[str, Any],
        stop: Callable[[], bool],
    ) -> None:
        self.run, self.corpus, self.comparison = run, corpus, comparison
        self.machine, self.fingerprint, self.stop = machine, fingerprint, stop
        self.plan = [(arm, seed) for seed in comparison.seeds for arm in range(len(comparison.arms))]
        self.names = comparison.spec.names()
        self.made = self._resume()
        self.begun_with, self.begun_at = len(self.made), time.monotonic()

    def make(self) -> list[Run]:
        """Every run; those that were finished before are not made again."""
        features = self._encode() if len(self.made) < len(self.plan) else None
        for arm, seed in self.plan[len(self.made) :]:
            has_failed = any(made.arm == arm and made.error for made in self.made)
            made = Run(arm, seed, 0.0, error="an earlier run failed") if has_failed else self._fit(arm, seed, features)
            self.made.append(made)
            self._write_down(made)
        return self.made

    def tell_progress(self, within: dict[str, Any]) -> None:
        """Pass on how far the present run is, as a part of them all."""
        if "encoded" in within:
            self.run.tell("progress", "encoding", within)
            return
        steps, runs = within["steps"], len(self.plan)
        done = len(self.made) + within["step"] / steps
        seconds = time.monotonic() - self.begun_at
        left = round(seconds / (done - self.begun_with) * (runs - done), 1)
        told = {**within, "step": round(done * steps), "steps": runs * steps, "eta_seconds": left}
        self.run.tell("progress", f"run {len(self.made) + 1} of {runs}", told)

    def _encode(self) -> FeatureTable | None:
        """The texts of a frozen comparison, encoded once for every run; None where the encoder trains."""
        if self.comparison.spec.tuning.type != "frozen":
            return None

        def told(done: int, rows: int) -> None:
            if self.stop():
                raise StoppedError("stopped while encoding the texts")
            self.run.tell("progress", "encoding", {"step": 0, "encoded": done, "rows": rows})

        return self.corpus.features(lambda: load_encoder(self.corpus.base), self.machine, told)

    def _fit(self, arm: int, seed: int, features: FeatureTable | None) -> Run:
        """Train one loss with one seed, and measure it."""
        prepared = assemble(self.corpus, self.comparison.arm(arm, seed), features)
        folder = _ArmDirectory(self.run.path / "arms" / f"{arm}-{seed}", self.tell_progress)
        fingerprint = {**self.fingerprint, "machine": self.machine.as_dict(), "arm": arm, "seed": seed}
        started = time.monotonic()
        try:
            fitted = fit(folder, prepared, self.machine, fingerprint, self.stop)
        except NonFiniteLossError as error:
            made = Run(arm, seed, time.monotonic() - started, error=str(error))
        else:
            made = self._measure(prepared, fitted, Run(arm, seed, time.monotonic() - started))
        shutil.rmtree(folder.path)
        return made

    def _measure(self, prepared: Prepared, fitted: Fitted, made: Run) -> Run:
        outputs, targets = fitted.answers
        made.metrics = fitted.metrics[self.comparison.part.name.lower()]
        made.unfitted = prepared.task.evaluate(outputs, targets)
        if self.comparison.folds:  # whose spread tells the noise of the rows as well
            made.answers = np.stack([fitted.task.answers(outputs), fitted.task.truth(targets)])
            return made

        def measure(rows: NDArray[np.int64]) -> float | None:
            return fitted.task.evaluate(outputs[rows], targets[rows]).get(self.comparison.metric)

        made.without = paired.measure_without(measure, len(targets))
        return made

    def _resume(self) -> list[Run]:
        """The runs that were finished before."""
        checkpoints, tell = self.run.checkpoints, self.run.tell
        folder = newest_verified(
            checkpoints, lambda why: tell("message", f"checkpoint refused: {why}", level="warning")
        )
        if folder is None:
            return []
        if changed := differences(folder, self.fingerprint):
            tell("message", f"another {' and '.join(changed)} than before: beginning anew", level="warning")
            shutil.rmtree(checkpoints)
            shutil.rmtree(self.run.path / "arms", ignore_errors=True)
            return []
        made = [Run(**one) for one in json.loads((folder / RUNS).read_bytes())]
        if self.comparison.folds:
            with np.load(folder / ANSWERS) as answers:
                for place in answers.files:
                    made[int(place)].answers = answers[place]
        data = {"reason": "resumed", "checkpoint": folder.name, "step": len(made)}
        tell("status", f"resumed after run {len(made)}", data)
        return made

    def _write_down(self, made: Run) -> None:
        """Tell of a finished run, and keep it: a comparison's checkpoint is the list of its finished runs."""
        count, name, metric = len(self.made), self.names[made.arm], self.comparison.metric
        which = f"fold {self.comparison.seeds.index(made.seed) + 1}" if self.comparison.folds else f"seed {made.seed}"
        said = f"run {count} of {len(self.plan)}: {name}, {which}"
        if made.error is not None:
            self.run.tell("message", f"{said}: {made.error}", level="warning")
        else:
            values = {f"{name}/{each}": value for each, value in made.metrics.items()}
            value = made.metrics.get(metric)
            said += f": {metric} {'undefined' if value is None else format(value, '.4f')}"
            self.run.tell("metrics", said, {"step": count, "values": values})
        checkpoints = self.run.checkpoints
        facts = {"step": count, "fingerprint": self.fingerprint}
        with publish_folder(checkpoints / f"step-{count:08d}", "checkpoint", facts) as folder:
            (folder / RUNS).write_text(json.dumps([{**vars(one), "answers": None} for one in self.made]))
            if self.comparison.folds:
                answers = {str(i): one.answers for i, one in enumerate(self.made) if one.answers is not None}
                np.savez_compressed(folder / ANSWERS, **answers)  # type: ignore[arg-type]
        for old in sorted(checkpoints.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
        data = {"folder": f"step-{count:08d}", "step": count, "epoch": count / len(self.plan), "metrics": {}}
        self.run.tell("checkpoint", f"{count} of {len(self.plan)} runs are done", data)


class _ArmDirectory(RunDirectory):
    """The directory of one run. Its checkpoints and its story stay there; only its progress is passed on."""

    def __init__(self, path: Path, tell_progress: Callable[[dict[str, Any]], None]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        super().__init__(path)
        self._tell_progress = tell_progress

    def tell(self, kind: str, message: str, data: dict[str, Any] | None = None, *, level: str = "info") -> None:
        """Keep it, or pass it on."""
        if kind == "progress":
            self._tell_progress(data or {})
        else:
            super().tell(kind, message, data, level=level)


# -------------------------------------------------------------------------------------------------------------- table


def report(comparison: ResolvedComparison, runs: Sequence[Run]) -> ComparisonReport:
    """The table: means, spreads, and which differences are more than chance."""
    names = comparison.spec.names()
    is_lower_better = comparison.metric in LOWER_IS_BETTER
    arms = []
    for place, (name, arm) in enumerate(zip(names, comparison.arms, strict=True)):
        own = [made for made in runs if made.arm == place]
        error = next((made.error for made in own if made.error), None)
        assert arm.spec.loss is not None, "a resolved spec has a loss"
        figures = {} if error else _figures([made.metrics for made in own])
        arms.append(
            ArmReport(
                id=name,
                loss=arm.spec.loss.model_dump(mode="json"),
                value=figures.get(comparison.metric),
                values=[made.metrics.get(comparison.metric) for made in own] if error is None else [],
                metrics=figures,
                unfitted={} if error else _figures([made.unfitted for made in own]),
                pooled=_pool(arm, own) if comparison.folds and not error else None,
                seconds=round(sum(made.seconds for made in own), 1),
                error=error,
            )
        )
    _judge(comparison, runs, arms, is_lower_better=is_lower_better)
    splits = comparison.folds[0] if comparison.folds else comparison.arms[:1]
    return ComparisonReport(
        metric=comparison.metric,
        higher_is_better=not is_lower_better,
        part="folds" if comparison.folds else comparison.part.name.lower(),
        rows=sum(int((split.parts == comparison.part).sum()) for split in splits),
        train_rows=min(split.train_rows for split in splits),
        seeds=comparison.seeds,
        folds=comparison.spec.folds,
        arms=arms,
        conclusion=_conclude(comparison.metric, arms),
    )


def _pool(arm: Resolved, runs: Sequence[Run]) -> dict[str, float]:
    """The metrics of all rows at once, each as the run answered that was tested on it."""
    answers, truth = np.concatenate([made.answers for made in runs if made.answers is not None], axis=1)
    return build_task(arm.state).evaluate_answers(answers, truth)


def _figures(runs: Sequence[dict[str, float]]) -> dict[str, Figure]:
    """Mean and deviation of every metric that each run has."""
    names = [name for name in runs[0] if all(name in made for made in runs)]
    values = {name: np.array([made[name] for made in runs]) for name in names}
    return {name: Figure(mean=float(each.mean()), std=float(each.std(ddof=1))) for name, each in values.items()}


def _judge(
    comparison: ResolvedComparison, runs: Sequence[Run], arms: Sequence[ArmReport], *, is_lower_better: bool
) -> None:
    """Put into each arm but the first how it differs from the first."""
    baseline = _runs_of(comparison, runs, 0)
    if baseline is None:
        return
    found: list[tuple[ArmReport, paired.Difference]] = []
    for place, arm in enumerate(arms[1:], 1):
        own = _runs_of(comparison, runs, place)
        if own is None:
            continue
        if comparison.folds:
            difference = paired.compare_folds(own.values, baseline.values)
        else:
            difference = paired.compare(own, baseline)
        if difference is not None:
            found.append((arm, difference))
    adjusted = paired.adjust([difference.p_value for _, difference in found])
    for (arm, difference), p_value in zip(found, adjusted, strict=True):
        verdict = "no significant difference"
        if p_value < SIGNIFICANT:
            verdict = "worse" if (difference.mean > 0) == is_lower_better else "better"
        arm.difference = DifferenceReport(
            mean=difference.mean, low=difference.low, high=difference.high, p_value=p_value, verdict=verdict
        )


def _runs_of(comparison: ResolvedComparison, runs: Sequence[Run], place: int) -> paired.Runs | None:
    own = [made for made in runs if made.arm == place]
    if any(made.error or comparison.metric not in made.metrics for made in own):
        return None
    return paired.Runs(
        np.array([made.metrics[comparison.metric] for made in own]),
        np.array([made.without for made in own], np.float64),  # None becomes NaN
    )


def _conclude(metric: str, arms: Sequence[ArmReport]) -> str:
    """The table in a sentence or two."""
    baseline, others = arms[0], arms[1:]
    if not others:
        return _conclude_alone(metric, baseline)
    if baseline.error:
        return f"{baseline.id}, which the others would be held against, failed: {baseline.error}"
    said = []
    for verdict in ("better", "worse"):
        named = [arm for arm in others if arm.difference and arm.difference.verdict == verdict]
        if named:
            listed = ", ".join(f"{arm.id} ({arm.difference.mean:+.4f})" for arm in named if arm.difference)
            said.append(f"{verdict.capitalize()} than {baseline.id} in {metric}: {listed}.")
    alike = [arm.id for arm in others if arm.difference and arm.difference.verdict == "no significant difference"]
    if alike:
        said.append(f"No significant difference from {baseline.id} in {metric}: {', '.join(alike)}.")
    said += [f"{arm.id} failed: {arm.error}" for arm in others if arm.error]
    undecided = [arm.id for arm in others if arm.difference is None and not arm.error]
    if undecided:
        said.append(f"Too few rows to tell {', '.join(undecided)} from {baseline.id}.")
    return " ".join(said)


def _conclude_alone(metric: str, arm: ArmReport) -> str:
    """What a cross-validation of one loss came to."""
    if arm.error:
        return f"{arm.id} failed: {arm.error}"
    values = [value for value in arm.values if value is not None]
    if arm.value is None:
        return f"{metric} of {arm.id} is undefined in {len(arm.values) - len(values)} of {len(arm.values)} folds."
    pooled = (arm.pooled or {}).get(metric)
    return (
        f"{arm.id} has a mean {metric} of {arm.value.mean:.4f} over {len(values)} folds, with a standard deviation of "
        f"{arm.value.std:.4f}: from {min(values):.4f} to {max(values):.4f}."
    ) + ("" if pooled is None else f" Of all rows at once it is {pooled:.4f}.")
