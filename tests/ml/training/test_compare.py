"""A comparison's runs: paired, measured as jobs are, resumed after the last finished one, judged honestly."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.comparisons import ResolvedComparison, resolve_comparison
from ml.data.splits import Part
from ml.evaluation import paired
from ml.specs.comparison import Comparison
from ml.training import compare as module
from ml.training import prepare
from ml.training.__main__ import main
from ml.training.compare import Run, compare, report
from ml.training.errors import ExitCode, NonFiniteLossError, StoppedError
from ml.training.fit import Fitted
from ml.training.prepare import Corpus, Prepared
from ml.training.report import ComparisonReport
from ml.training.run import Placement, RunDirectory
from tests.ml.runs import MACHINE, fit_run, lay_out, prepare_run, read_events
from tests.tiny_base import learnable_rows

LOSSES = ["cross_entropy", "focal"]


class House:
    """A comparison's run directory on the tiny base."""

    def __init__(self, folder: Path, base: Path, **spec: Any) -> None:
        body = {"losses": LOSSES, "seeds": 2, "tuning": "frozen", **spec}
        self.run = lay_out(folder, **{"rows": learnable_rows(120), **body})
        placement = Placement(base_models={"tiny": base})
        given = self.run.read_spec(Comparison)
        self.corpus = Corpus(self.run, placement, given)
        self.comparison = resolve_comparison(given, self.corpus.facts, self.corpus.base_facts, self.corpus.cells)

    def compare(self, stop: Callable[[], bool] = lambda: False, **fingerprint: Any) -> ComparisonReport:
        fingerprint = {"spec": self.comparison.spec.model_dump(mode="json"), **fingerprint}
        return compare(self.run, self.corpus, self.comparison, MACHINE, fingerprint, stop)

    def said(self) -> list[str]:
        return [event["message"] for event in read_events(self.run, "metrics")]


def test_each_run_is_what_a_job_with_that_seed_and_split_comes_to(tmp_path: Path, tiny_base: Path) -> None:
    house = House(tmp_path / "all", tiny_base, training={"epochs": 2, "seed": 3})
    found = house.compare()
    job = lay_out(
        tmp_path / "one",
        rows=learnable_rows(120),
        loss="focal",
        tuning="frozen",
        split={"seed": 3},
        training={"epochs": 2, "seed": 4},
    )
    fitted = fit_run(job, prepare_run(job, tiny_base))
    assert found.arms[1].values[1] == fitted.metrics["test"]["macro_f1"]


def test_the_texts_of_a_frozen_comparison_are_encoded_once(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = prepare.encode_features

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return encode(*arguments)

    monkeypatch.setattr(prepare, "encode_features", counted)
    House(tmp_path, tiny_base).compare()
    assert len(calls) == 1


def test_the_same_loss_twice_makes_no_difference(tmp_path: Path, tiny_base: Path) -> None:
    found = House(tmp_path, tiny_base, losses=["focal", "focal"], tuning="full").compare()
    first, second = found.arms
    assert first.values == second.values
    assert second.difference is not None
    assert (second.difference.mean, second.difference.verdict) == (0.0, "no significant difference")
    assert found.conclusion == "No significant difference from focal in macro_f1: focal_2."


def test_it_goes_on_after_the_last_finished_run(tmp_path: Path, tiny_base: Path) -> None:
    whole = House(tmp_path / "whole", tiny_base).compare()
    house = House(tmp_path / "stopped", tiny_base)
    with pytest.raises(StoppedError):
        house.compare(lambda: len(house.said()) >= 3)
    assert len(house.said()) == 3
    resumed = House(tmp_path / "stopped", tiny_base)
    found = resumed.compare()
    assert len(resumed.said()) == 4  # the three before it among them
    assert [arm.values for arm in found.arms] == [arm.values for arm in whole.arms]


def test_runs_of_another_spec_are_not_taken_for_ours(tmp_path: Path, tiny_base: Path) -> None:
    house = House(tmp_path, tiny_base)
    house.compare(dataset_sha256="before")
    House(tmp_path, tiny_base).compare(dataset_sha256="after")
    assert len(house.said()) == 8
    assert any("beginning anew" in event["message"] for event in read_events(house.run, "message"))


def test_progress_counts_the_steps_of_all_runs(tmp_path: Path, tiny_base: Path) -> None:
    house = House(tmp_path, tiny_base)
    house.compare()
    told = [event["data"] for event in read_events(house.run, "progress") if event["data"]["step"]]
    steps = told[-1]["steps"]
    assert told[-1]["step"] == steps
    assert [each["step"] for each in told] == sorted(each["step"] for each in told)
    assert told[-1]["eta_seconds"] == 0


def test_temperature_changes_no_accuracy(tmp_path: Path, tiny_base: Path) -> None:
    arm = House(tmp_path, tiny_base).compare().arms[0]
    assert arm.metrics["accuracy"] == arm.unfitted["accuracy"]
    assert arm.metrics["loss"] != arm.unfitted["loss"]


def test_a_loss_that_diverges_fails_alone(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, tried = module.fit, []

    def diverging(run: RunDirectory, prepared: Prepared, *others: Any) -> Fitted:
        tried.append(prepared.objective.names)
        if prepared.objective.names == ["focal"]:
            raise NonFiniteLossError("the loss became nan at step 3.")
        return fit(run, prepared, *others)

    monkeypatch.setattr(module, "fit", diverging)
    found = House(tmp_path, tiny_base).compare()
    good, bad = found.arms
    assert good.value is not None
    assert bad.error == "the loss became nan at step 3."
    assert (bad.value, bad.difference, bad.values) == (None, None, [])
    assert found.conclusion == "focal failed: the loss became nan at step 3."
    assert tried.count(["focal"]) == 1  # its other seed is not tried


# --------------------------------------------------------------------------------------------------------------- folds


def test_a_fold_is_what_a_job_comes_to_that_is_split_so(tmp_path: Path, tiny_base: Path) -> None:
    house = House(tmp_path / "all", tiny_base, losses=["focal"], seeds=None, folds=3)
    found = house.compare()
    rows = learnable_rows(120)
    parts = [Part(part).name.lower() for part in house.comparison.arm(0, 18).parts.tolist()]
    split = [(*row, part) for row, part in zip(rows, parts, strict=True)]
    headers = ("text", "label", "split")
    job = lay_out(tmp_path / "one", rows=split, headers=headers, loss="focal", tuning="frozen", training={"seed": 18})
    fitted = fit_run(job, prepare_run(job, tiny_base))
    assert found.arms[0].values[1] == fitted.metrics["test"]["macro_f1"]
    assert (found.part, found.folds, found.rows, found.train_rows) == ("folds", 3, 120, 72)


def test_one_loss_has_a_mean_and_a_spread_and_no_verdict(tmp_path: Path, tiny_base: Path) -> None:
    found = House(tmp_path, tiny_base, losses=["focal"], seeds=None, folds=3).compare()
    (arm,) = found.arms
    assert arm.value is not None
    assert arm.pooled is not None
    assert arm.difference is None
    assert len(arm.values) == 3
    assert arm.pooled["accuracy"] == pytest.approx(arm.metrics["accuracy"].mean)  # of folds of one size
    assert "roc_auc" not in arm.pooled
    said = f"focal has a mean macro_f1 of {arm.value.mean:.4f} over 3 folds"
    assert found.conclusion.startswith(said)
    assert found.conclusion.endswith(f"Of all rows at once it is {arm.pooled['macro_f1']:.4f}.")


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (["[]", '["a"]', '["b"]', '["a", "b"]'], "bce"),
        (["1", "2", "3", "4"], "corn"),
        (["0.5", "1.25", "-2", "3.5"], "mse"),
    ],
)
def test_of_folds_that_stopped_nothing_is_lost(tmp_path: Path, tiny_base: Path, labels: list[str], loss: str) -> None:
    rows = [(text, labels[i % 4]) for i, (text, _) in enumerate(learnable_rows(60))]
    spec: dict[str, Any] = {"losses": [loss], "seeds": None, "folds": 3, "rows": rows, "training": {"epochs": 1}}
    whole = House(tmp_path / "whole", tiny_base, **spec).compare()
    house = House(tmp_path / "stopped", tiny_base, **spec)
    with pytest.raises(StoppedError):
        house.compare(lambda: len(house.said()) >= 2)
    resumed = House(tmp_path / "stopped", tiny_base, **spec)
    found = resumed.compare()
    assert len(resumed.said()) == 3
    ours, theirs = ([report.arms[0].values, report.arms[0].pooled] for report in (found, whole))
    assert ours == theirs


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.fixture
def comparison(tmp_path: Path, tiny_base: Path) -> Callable[..., ResolvedComparison]:
    return lambda **spec: House(tmp_path, tiny_base, seeds=None if "folds" in spec else 3, **spec).comparison


def made(arm: int, values: list[float], metric: str = "macro_f1") -> list[Run]:
    """Runs whose metric no row changes."""
    return [Run(arm, 17 + i, 1.0, {metric: value}, {metric: value}, [value] * 20) for i, value in enumerate(values)]


def test_a_clear_difference_has_a_direction(comparison: Callable[..., ResolvedComparison]) -> None:
    runs = made(0, [0.70, 0.71, 0.70]) + made(1, [0.80, 0.812, 0.80])
    found = report(comparison(), runs).arms[1].difference
    assert found is not None
    assert (found.verdict, round(found.mean, 3)) == ("better", 0.101)
    assert found.low > 0


def test_of_an_error_the_lower_is_the_better(comparison: Callable[..., ResolvedComparison]) -> None:
    runs = made(0, [0.70, 0.71, 0.70], "ece") + made(1, [0.80, 0.812, 0.80], "ece")
    whole = report(comparison(metric="ece"), runs)
    assert whole.arms[1].difference is not None
    assert (whole.higher_is_better, whole.arms[1].difference.verdict) == (False, "worse")


def test_of_folds_the_spread_alone_is_judged(comparison: Callable[..., ResolvedComparison]) -> None:
    runs = made(0, [0.70, 0.71, 0.70]) + made(1, [0.80, 0.812, 0.80])
    for run in runs:
        run.without, run.answers = [], np.zeros((2, 4), np.int64)
    found = report(comparison(folds=3), runs).arms[1].difference
    assert found is not None
    expected = paired.compare_folds(np.array([0.80, 0.812, 0.80]), np.array([0.70, 0.71, 0.70]))
    assert expected is not None
    assert (found.low, found.p_value, found.verdict) == (expected.low, expected.p_value, "better")


def test_a_metric_that_a_fold_has_not_is_said_to_be_undefined(comparison: Callable[..., ResolvedComparison]) -> None:
    runs = made(0, [0.70, 0.71, 0.70])
    for run in runs:
        run.answers = np.zeros((2, 4), np.int64)
    runs[1].metrics = {}
    whole = report(comparison(folds=3, losses=["focal"]), runs)
    assert whole.conclusion == "macro_f1 of focal is undefined in 1 of 3 folds."


def test_a_spread_as_wide_as_the_difference_decides_nothing(comparison: Callable[..., ResolvedComparison]) -> None:
    runs = made(0, [0.70, 0.71, 0.70]) + made(1, [0.75, 0.66, 0.74])
    found = report(comparison(), runs).arms[1].difference
    assert found is not None
    assert found.verdict == "no significant difference"


def test_an_undefined_metric_is_said_to_decide_nothing(comparison: Callable[..., ResolvedComparison]) -> None:
    runs = made(0, [0.70, 0.71, 0.70]) + made(1, [0.8, 0.8, 0.8])
    runs[-1].without[3] = None
    whole = report(comparison(), runs)
    assert whole.arms[1].difference is None
    assert "too few rows" in whole.conclusion.lower()


def test_the_training_program_compares_and_leaves_no_model(tmp_path: Path, tiny_base: Path) -> None:
    house = House(tmp_path, tiny_base)
    placement = {"kind": "comparison", "base_models": {"tiny": str(tiny_base)}, "threads": 1}
    (house.run.path / "run.json").write_text(json.dumps(placement))
    assert main([str(house.run.path)]) == ExitCode.DONE
    found = ComparisonReport.model_validate_json((house.run.path / "result.json").read_bytes())
    assert [arm.id for arm in found.arms] == LOSSES
    assert all(math.isfinite(figure.mean) for arm in found.arms for figure in arm.metrics.values())
    assert not RunDirectory(house.run.path).artifact.exists()
