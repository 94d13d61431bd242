"""A model that is trained further: what it learned comes along, label by label."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml.artifact.merge import write_merged
from ml.specs.errors import SpecError
from ml.training.__main__ import main
from ml.training.errors import ExitCode
from ml.training.export import export_artifact
from ml.training.prepare import Prepared, prepare
from ml.training.run import Placement, RunDirectory
from tests.ml.runs import fit_run, lay_out, read_events
from tests.tiny_base import learnable_rows, make_tiny_base

ROWS = learnable_rows(90)
LABELS = sorted({label for _, label in ROWS})


class Trained:
    """A model that was trained and exported."""

    def __init__(self, folder: Path, base: Path, rows: Any = ROWS, **spec: Any) -> None:
        self.base = base
        self.run = lay_out(folder, rows=rows, **spec)
        self.prepared = prepare(self.run, Placement(base_models={"tiny": base}))
        export_artifact(self.run, self.prepared, fit_run(self.run, self.prepared), dataset_sha256=None)

    def placement(self) -> Placement:
        weights = self.base
        if self.prepared.spec.tuning.type == "full":
            weights = self.run.artifact
        elif self.prepared.spec.tuning.type == "lora":
            weights = self.run.path / "merged"
            if not weights.exists():
                write_merged(self.run.artifact, self.run.base, weights)
        # One thread, as in the rest of this process: a run in it sets the number for all that follow.
        return Placement(base_models={"tiny": self.base, "mdl_1": weights}, start=self.run.artifact, threads=1)

    def continued(self, folder: Path, **spec: Any) -> tuple[RunDirectory, Prepared]:
        run = lay_out(folder, **{"rows": ROWS, "model": "mdl_1", **spec})
        return run, prepare(run, self.placement())


def logits(prepared: Prepared) -> torch.Tensor:
    network = prepared.network.eval()
    with torch.no_grad():
        inputs = prepared.tokens.inputs_of(np.arange(20))
        if prepared.encoder is not None:
            inputs = {"features": prepared.encoder(**inputs)}
        answers: torch.Tensor = network(**inputs).logits
    return answers


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_before_its_first_step_it_answers_as_it_did(tuning: str, tmp_path: Path, tiny_base: Path) -> None:
    trained = Trained(tmp_path / "first", tiny_base, tuning=tuning)
    _, prepared = trained.continued(tmp_path / "second", tuning=tuning)
    torch.testing.assert_close(logits(prepared), logits(trained.prepared), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_rows_of_the_head_follow_their_labels_and_new_labels_get_new_ones(
    tuning: str, tmp_path: Path, tiny_base: Path
) -> None:
    trained = Trained(tmp_path / "first", tiny_base, tuning=tuning)
    rows = [*ROWS, *[(f"a question {i}", "another") for i in range(20)], *[(f"zzz {i}", "zebra") for i in range(20)]]
    _, prepared = trained.continued(tmp_path / "second", rows=rows, tuning=tuning)
    labels = prepared.resolved.state.labels
    assert labels == sorted([*LABELS, "another", "zebra"])
    places = [labels.index(label) for label in LABELS]
    assert places != list(range(len(LABELS)))  # else a copy in order would do
    before, after = logits(trained.prepared), logits(prepared)
    torch.testing.assert_close(after[:, places], before, rtol=1e-4, atol=1e-5)
    assert prepared.begun is not None
    assert prepared.begun.endswith(f"{len(LABELS)} labels are known, new: another, zebra")


def test_a_label_that_is_gone_is_said(tmp_path: Path, tiny_base: Path) -> None:
    trained = Trained(tmp_path / "first", tiny_base)
    rows = [(text, "new" if label == LABELS[0] else label) for text, label in ROWS]
    _, prepared = trained.continued(tmp_path / "second", rows=rows)
    assert prepared.begun is not None
    assert prepared.begun.endswith(f"new: new, left out: {LABELS[0]}")


def test_another_reading_keeps_the_encoder_alone(tmp_path: Path, tiny_base: Path) -> None:
    trained = Trained(tmp_path / "first", tiny_base)
    _, prepared = trained.continued(tmp_path / "second", loss="bce" if len(LABELS) == 2 else "arcface")
    assert prepared.begun is not None
    assert "the head begins anew" in prepared.begun
    ours = {name: tensor for name, tensor in trained.prepared.network.named_parameters() if ".encoder." in name}
    theirs = dict(prepared.network.named_parameters())
    assert ours
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_an_ordinal_model_keeps_its_score_and_thresholds(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(text, str(1 + i % 3)) for i, (text, _) in enumerate(ROWS)]
    spec: dict[str, Any] = {"rows": rows, "task": {"type": "ordinal"}, "loss": "coral"}
    trained = Trained(tmp_path / "first", tiny_base, **spec)
    _, prepared = trained.continued(tmp_path / "second", **spec)
    torch.testing.assert_close(logits(prepared), logits(trained.prepared), rtol=1e-4, atol=1e-5)


def test_a_head_whose_base_has_changed_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    trained = Trained(tmp_path / "first", tiny_base, tuning="frozen")
    trained.base = make_tiny_base(tmp_path / "other", layers=1)
    with pytest.raises(SpecError, match="files have changed"):
        trained.continued(tmp_path / "second", tuning="frozen")


def test_the_training_program_says_what_came_along_and_the_artifact_names_the_base(
    tmp_path: Path, tiny_base: Path
) -> None:
    trained = Trained(tmp_path / "first", tiny_base)
    run = lay_out(tmp_path / "second", rows=ROWS, model="mdl_1")
    (run.path / "run.json").write_text(trained.placement().model_dump_json())
    assert main([str(run.path)]) == ExitCode.DONE
    said = [event["message"] for event in read_events(run, "message")]
    assert f"trains mdl_1 further: encoder and head go on from there; {len(LABELS)} labels are known" in said
    assert json.loads((run.artifact / "minimand.json").read_text())["base_model"] == "tiny"
