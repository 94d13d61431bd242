"""A dry run: the figures are those of the job's own first steps, no weight moves, and what is wrong is said."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ml.data.batches import plan_epoch
from ml.data.splits import Part
from ml.losses.base import Targets
from ml.models.outputs import Outputs
from ml.training.dry_run import MOST_STEPS, NO_LABEL, dry_run
from ml.training.errors import ExitCode, StoppedError
from ml.training.prepare import Prepared
from ml.training.report import DryRunReport
from ml.training.step import backward_step
from tests.ml.runs import MACHINE, lay_out, prepare_run, weights_sha256
from tests.tiny_base import learnable_rows

REPOSITORY = Path(__file__).parents[3]
SUPCON = {"loss": {"type": "supcon"}, "weight": 0.5}


def ignore_progress(_done: int, _steps: int) -> None:
    """Nobody listens."""


def try_out(prepared: Prepared) -> DryRunReport:
    report = dry_run(prepared, MACHINE, told=ignore_progress, stop=lambda: False)
    json.dumps(report.model_dump(), allow_nan=False)  # what a database and a reply must be able to hold
    return report


def prepared_for(folder: Path, base: Path, **options: Any) -> Prepared:
    training = {"dropout": 0.0, **options.pop("training", {})}
    return prepare_run(lay_out(folder, training=training, **options), base)


def test_one_term_is_the_loss_and_gradient_of_the_first_steps(tmp_path: Path, tiny_base: Path) -> None:
    (term,) = try_out(prepared_for(tmp_path / "a", tiny_base)).terms
    prepared = prepared_for(tmp_path / "b", tiny_base)
    training = prepared.spec.training
    plan = plan_epoch(
        prepared.rows_of(Part.TRAIN), prepared.tokens.lengths, training.batch_size, training.seed, epoch=0
    )
    losses, norms = [], []
    for rows in plan[:MOST_STEPS]:
        prepared.network.zero_grad()
        step = backward_step(
            prepared.network, prepared.objective, prepared.batch_of(rows, 0, prepared.tokens), MACHINE, None, 0.0
        )
        losses.append(step.loss)
        norms.append(
            float(nn.utils.get_total_norm([p.grad for p in prepared.network.parameters() if p.grad is not None]))
        )
    assert term.value.model_dump() == pytest.approx({"mean": np.mean(losses), "min": min(losses), "max": max(losses)})
    assert term.gradient_norm.mean == pytest.approx(np.mean(norms), rel=1e-4)
    assert (term.id, term.loss, term.weight, term.gradient_share) == ("cross_entropy", "cross_entropy", 1.0, 1.0)
    assert term.rows_counted == 1.0


def test_no_weight_moves(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base)
    before = weights_sha256(prepared.network)
    try_out(prepared)
    assert weights_sha256(prepared.network) == before
    assert all(p.grad is None for p in prepared.network.parameters())


def test_the_cut_into_micro_batches_does_not_matter(tmp_path: Path, tiny_base: Path) -> None:
    whole = try_out(prepared_for(tmp_path / "whole", tiny_base)).terms[0]
    cut = try_out(prepared_for(tmp_path / "cut", tiny_base, training={"micro_batch_rows": 3})).terms[0]
    assert cut.value.mean == pytest.approx(whole.value.mean, rel=1e-5)
    assert cut.gradient_norm.mean == pytest.approx(whole.gradient_norm.mean, rel=1e-4)
    assert cut.class_shares == pytest.approx(whole.class_shares, rel=1e-4)


def test_a_composition_shows_each_term_by_itself(tmp_path: Path, tiny_base: Path) -> None:
    alone = try_out(prepared_for(tmp_path / "alone", tiny_base)).terms[0]
    loss = {"terms": [{"loss": "cross_entropy"}, SUPCON]}
    report = try_out(prepared_for(tmp_path / "both", tiny_base, loss=loss))
    first, second = report.terms
    assert first.gradient_norm.mean == pytest.approx(alone.gradient_norm.mean, rel=1e-4)
    assert second.weight == 0.5
    assert (first.gradient_share or 0) + (second.gradient_share or 0) == pytest.approx(1)
    ratio = (first.gradient_norm.mean or 0) / (0.5 * (second.gradient_norm.mean or 1))
    assert (first.gradient_share or 0) / (second.gradient_share or 1) == pytest.approx(ratio)


def test_a_scheduled_weight_counts_by_its_mean(tmp_path: Path, tiny_base: Path) -> None:
    weight = {"schedule": "linear", "from": 0.0, "to": 0.4}
    loss = {"terms": [{"loss": "cross_entropy"}, {**SUPCON, "weight": weight}]}
    report = try_out(prepared_for(tmp_path, tiny_base, loss=loss))
    assert report.terms[1].weight == pytest.approx(0.2)
    assert not any("dead" in warning for warning in report.warnings)


def test_the_shares_of_the_labels_add_up(tmp_path: Path, tiny_base: Path) -> None:
    (term,) = try_out(prepared_for(tmp_path, tiny_base)).terms
    assert set(term.class_shares) == {"delivery", "other", "refund"}
    assert sum(term.class_shares.values()) == pytest.approx(1)
    assert list(term.class_shares.values()) == sorted(term.class_shares.values(), reverse=True)


def test_a_row_of_several_labels_counts_in_parts(tmp_path: Path, tiny_base: Path) -> None:
    cells = ['["a"]', '["a", "b"]', "[]"]
    rows = [(text, cells[i % 3]) for i, (text, _) in enumerate(learnable_rows(60))]
    (term,) = try_out(prepared_for(tmp_path, tiny_base, rows=rows)).terms
    assert term.loss == "bce"
    assert set(term.class_shares) == {"a", "b", NO_LABEL}
    assert sum(term.class_shares.values()) == pytest.approx(1)
    assert term.class_shares["a"] > term.class_shares["b"]


def test_numbers_are_shown_by_fifths_in_their_own_units(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(text, f"{10 + i / 7:.3f}") for i, (text, _) in enumerate(learnable_rows(70))]
    (term,) = try_out(prepared_for(tmp_path, tiny_base, rows=rows)).terms
    assert term.loss == "mse"
    assert len(term.class_shares) == 5
    names = list(term.class_shares)
    assert any(name.startswith("below 11.") for name in names)
    # The squared error of a guess near the mean is largest at an end.
    assert names[0].startswith("below") or names[0].endswith("and above")


def test_frozen_tuning_encodes_the_tried_rows_alone(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base, rows=learnable_rows(300), tuning={"type": "frozen"})
    encoded: list[int] = []
    assert prepared.encoder is not None
    prepared.encoder.register_forward_pre_hook(
        lambda _module, _args, inputs: encoded.append(len(inputs["input_ids"])), with_kwargs=True
    )
    report = try_out(prepared)
    assert sum(encoded) == report.batches.rows == 4 * 8
    assert report.terms[0].value.mean == pytest.approx(math.log(3), abs=1.0)
    assert report.batches.estimated_seconds > 0


def test_the_facts_of_the_batches(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base, training={"epochs": 100})
    facts = try_out(prepared).batches
    assert (facts.steps, facts.rows, facts.device, facts.threads) == (4, 32, "cpu", 1)
    assert 32 * 3 < facts.tokens < int(prepared.tokens.lengths.sum())
    assert 0 <= facts.padding_share < 0.5
    assert facts.estimated_seconds == pytest.approx(facts.seconds_per_step * 600)


def test_a_small_dataset_is_tried_as_far_as_it_goes(tmp_path: Path, tiny_base: Path) -> None:
    training = {"batch_size": 100}
    assert try_out(prepared_for(tmp_path, tiny_base, training=training)).batches.steps == 1


# ------------------------------------------------------------------------------------------------------------- warnings


def test_nothing_wrong_is_no_warning(tmp_path: Path, tiny_base: Path) -> None:
    assert try_out(prepared_for(tmp_path, tiny_base)).warnings == []


def test_a_dead_term(tmp_path: Path, tiny_base: Path) -> None:
    loss = {"terms": [{"loss": "cross_entropy"}, {**SUPCON, "weight": 0.0}]}
    report = try_out(prepared_for(tmp_path / "weight", tiny_base, loss=loss))
    assert any("'supcon' is a dead term: its weight is 0" in warning for warning in report.warnings)
    # Its two passes are the same: nothing is dropped.
    loss = {"terms": [{"loss": "cross_entropy"}, {"loss": "r_drop"}]}
    prepared = prepared_for(tmp_path / "gradient", tiny_base, loss=loss, training={"dropout": 0.1})
    for module in prepared.network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    report = try_out(prepared)
    assert report.terms[1].gradient_norm.max == 0
    assert any("'r_drop' is a dead term: its gradient is 0 in each of the 4" in warning for warning in report.warnings)


def test_a_term_that_dominates(tmp_path: Path, tiny_base: Path) -> None:
    loss = {"terms": [{"loss": "cross_entropy"}, {**SUPCON, "weight": 1e-4}]}
    report = try_out(prepared_for(tmp_path, tiny_base, loss=loss))
    assert any(warning.startswith("'cross_entropy' dominates: ") for warning in report.warnings)


class Broken(nn.Module):
    """A loss that fails on one row, which it knows by its group."""

    def __init__(self, loss: nn.Module, group: int) -> None:
        super().__init__()
        self.loss, self.group = loss, group

    def denominators(self, targets: Targets) -> torch.Tensor:
        return self.loss.denominators(targets)  # type: ignore[operator, no-any-return]

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def numerators(self, outputs: Outputs, targets: Targets) -> torch.Tensor:
        assert targets.groups is not None
        found: torch.Tensor = self.loss.numerators(outputs, targets)  # type: ignore[operator]
        return torch.where(targets.groups == self.group, torch.nan, 1.0) * found


def test_what_is_not_finite_is_named_by_term_and_row(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base, training={"batch_size": 16})
    row = int(prepared.rows_of(Part.TRAIN)[5])
    prepared.targets = Targets(prepared.targets.labels, torch.arange(60))
    prepared.objective.losses[0] = Broken(prepared.objective.losses[0], row)
    report = try_out(prepared)
    assert report.warnings[0].startswith(f"'cross_entropy' is not finite in row {row + 1} of the dataset")
    assert report.terms[0].value.mean is None
    assert report.terms[0].gradient_share is None
    assert sum(report.terms[0].class_shares.values()) == pytest.approx(1)


def test_no_positives_for_supcon(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(text, f"label {i % 40}") for i, (text, _) in enumerate(learnable_rows(80))]
    loss = {"terms": [{"loss": "cross_entropy"}, SUPCON]}
    report = try_out(prepared_for(tmp_path, tiny_base, rows=rows, loss=loss, training={"batch_size": 2}))
    assert report.terms[1].rows_counted < 0.5
    assert any("'supcon' finds a positive for" in warning for warning in report.warnings)
    assert not any("dead" in warning for warning in report.warnings)


def test_rows_without_any_label(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(text, '["a"]' if i % 2 else '["b"]') for i, (text, _) in enumerate(learnable_rows(60))]
    prepared = prepared_for(tmp_path, tiny_base, rows=rows)
    prepared.targets.labels.zero_()
    assert any("saw no positives" in warning for warning in try_out(prepared).warnings)


def test_one_label_that_makes_up_the_loss(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(text, "rare" if i % 30 == 0 else "common") for i, (text, _) in enumerate(learnable_rows(120))]
    loss = {"type": "cross_entropy", "class_weights": {"rare": 0.01, "common": 1.0}}
    report = try_out(prepared_for(tmp_path, tiny_base, rows=rows, loss=loss))
    assert any("of 'cross_entropy' comes from rows of 'common'" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "loss",
    [
        {"terms": [{"loss": "cross_entropy"}, {"loss": "fgm"}]},
        {"terms": [{"loss": "cross_entropy"}, {"loss": "focal"}], "combine": "gradnorm"},
        {"terms": [{"loss": "cross_entropy"}, {"loss": "focal"}], "combine": "uncertainty"},
        {"terms": [{"loss": "cross_entropy"}, {"loss": "entropy_min", "weight": 0.1}], "combine": "rlw"},
        "ldam",
    ],
)
def test_every_kind_of_objective_can_be_tried(tmp_path: Path, tiny_base: Path, loss: Any) -> None:
    report = try_out(prepared_for(tmp_path, tiny_base, loss=loss))
    assert all(term.gradient_norm.mean for term in report.terms)


# ---------------------------------------------------------------------------------------------------------- the program


def test_it_stops_when_asked(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(StoppedError):
        dry_run(prepared_for(tmp_path, tiny_base), MACHINE, told=ignore_progress, stop=lambda: True)


def test_the_training_program_does_a_dry_run_and_leaves_no_model(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path)
    placement = {"kind": "dry_run", "base_models": {"tiny": str(tiny_base)}, "threads": 1}
    (run.path / "run.json").write_text(json.dumps(placement))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ml.training", str(run.path)]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, check=False)
    assert ended.returncode == ExitCode.DONE
    report = DryRunReport.model_validate_json((run.path / "result.json").read_bytes())
    assert report.terms[0].id == "cross_entropy"
    assert not run.artifact.exists()
    assert not run.checkpoints.exists()
