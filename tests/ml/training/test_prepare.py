"""From a run directory to rows, tokens, targets and a network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml.data.splits import Part
from ml.data.tokens import FeatureTable
from ml.models.heads import SharedHead
from ml.specs.errors import Problem, SpecError
from ml.training.prepare import Prepared, encode_features, logits_of, prepare
from ml.training.run import Placement, RunDirectory
from tests.ml.conftest import Exported
from tests.ml.runs import MACHINE, fit_run, lay_out, prepare_run, series, trained_logits
from tests.tiny_base import learnable_rows, write_csv


def test_targets_and_parts_belong_to_their_rows(tmp_path: Path, tiny_base: Path) -> None:
    rows = learnable_rows(30)
    prepared = prepare_run(lay_out(tmp_path, rows=rows), tiny_base)
    assert [prepared.resolved.state.labels[i] for i in prepared.targets.labels.tolist()] == [label for _, label in rows]
    parts = [prepared.rows_of(part) for part in Part]
    assert sorted(np.concatenate(parts).tolist()) == list(range(30))
    assert [len(part) for part in parts] == [24, 3, 3]


def test_pairs_are_read_as_pairs(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path)
    rows = [(text, "hello there", label) for text, label in learnable_rows(12)]
    write_csv(tmp_path / "data.csv", rows, ("premise", "hypothesis", "label"))
    prepared = prepare_run(run, tiny_base)
    types = prepared.tokens.inputs_of(np.array([0]))["token_type_ids"][0]
    assert types.tolist()[-3:] == [1, 1, 1]  # hello there [SEP]
    assert types[0] == 0


def test_an_unknown_base_is_refused_before_anything_is_read(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no base model 'tinyy'.*Did you mean 'tiny'"):
        prepare_run(lay_out(tmp_path, model="tinyy"), tiny_base)


@pytest.mark.parametrize("budget", [1, 60, 8192])
def test_logits_come_in_the_order_of_the_rows_with_dropout_off(tmp_path: Path, tiny_base: Path, budget: int) -> None:
    prepared = prepare_run(lay_out(tmp_path), tiny_base)
    prepared.network.train()
    rows = np.random.default_rng(0).permutation(60)[:25]
    answers = logits_of(prepared.network, prepared.tokens, rows, replace(MACHINE, micro_batch_tokens=budget))
    assert prepared.network.training  # as it was
    prepared.network.eval()
    with torch.no_grad():
        for row, answer in zip(rows, answers, strict=True):
            alone = prepared.network(**prepared.tokens.inputs_of(np.array([row]))).logits[0].numpy()
            np.testing.assert_allclose(answer, alone, rtol=0, atol=1e-5)


def test_features_are_the_encoders_answers_row_by_row(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_run(lay_out(tmp_path, tuning={"type": "frozen"}), tiny_base)
    assert prepared.encoder is not None
    told: list[tuple[int, int]] = []
    machine = replace(MACHINE, micro_batch_tokens=100)
    monkeypatch.setattr("ml.training.prepare.ROWS_ENCODED_AT_ONCE", 25)
    made = encode_features(prepared.encoder, prepared.tokens, machine, lambda done, rows: told.append((done, rows)))
    features = FeatureTable(np.concatenate([piece["features"] for piece in made]))
    for row in range(0, 60, 7):
        alone = prepared.encoder(**prepared.tokens.inputs_of(np.array([row])))
        torch.testing.assert_close(features.inputs_of(np.array([row]))["features"], alone, rtol=0, atol=1e-5)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (60, 60)
    assert len(told) > 3


def test_groups_are_numbered_in_the_order_of_their_names(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(text, label, "ba"[i % 2]) for i, (text, label) in enumerate(learnable_rows(30))]
    columns = {"group": "source"}
    headers = ("text", "label", "source")
    run = lay_out(tmp_path, rows=rows, headers=headers, columns=columns, loss="group_dro")
    prepared = prepare_run(run, tiny_base)
    assert prepared.resolved.groups == ("a", "b")
    assert prepared.targets.groups is not None
    assert prepared.targets.groups.tolist() == [1, 0] * 15
    other = prepare_run(lay_out(tmp_path / "other", rows=rows, headers=headers, columns=columns), tiny_base)
    assert other.targets.groups is None  # no loss asks for them


# -------------------------------------------------------------------------------------------------------------- teacher

KD = {"terms": [{"loss": "cross_entropy"}, {"loss": {"type": "kd", "teacher": "mdl_1"}, "weight": 2}]}


def prepare_with(run: RunDirectory, base: Path, *teachers: Exported) -> Prepared:
    """With the first of these as mdl_1."""
    known = {f"mdl_{i}": (one.artifact, one.runtime) for i, one in enumerate(teachers, 1)}
    (run.path / "run.json").write_text(Placement(base_models={"tiny": base}, teachers=known).model_dump_json())
    return prepare(run, run.read_placement())


def refusal_of(run: RunDirectory, base: Path, *teachers: Exported) -> Problem:
    with pytest.raises(SpecError) as caught:
        prepare_with(run, base, *teachers)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("kind", ["exported_full", "exported_frozen"])
def test_a_teacher_is_asked_for_every_row_that_trains(
    kind: str, tmp_path: Path, tiny_base: Path, request: pytest.FixtureRequest
) -> None:
    teacher: Exported = request.getfixturevalue(kind)
    rows = learnable_rows(30, seed=8)
    run = lay_out(tmp_path, rows=rows, loss=KD, training={"max_steps": 2})
    prepared = prepare_with(run, tiny_base, teacher)
    told = prepared.targets.teacher
    assert told is not None
    assert told.shape == (30, 3)
    train = prepared.rows_of(Part.TRAIN)
    expected = trained_logits(teacher.prepared, [rows[row][0] for row in train])
    np.testing.assert_allclose(told[torch.from_numpy(train)], expected, rtol=0, atol=1e-4)
    assert not told[torch.from_numpy(prepared.rows_of(Part.TEST))].any()
    fit_run(run, prepared)
    assert list(series(run, "train/loss/kd")) == [1, 2]


def test_a_teacher_that_is_not_at_hand_is_asked_for(tmp_path: Path, tiny_base: Path) -> None:
    problem = refusal_of(lay_out(tmp_path, loss=KD), tiny_base)
    assert (problem.pointer, problem.code) == ("/loss/terms/1/loss/teacher", "no_teacher")
    assert "run.json" in problem.message


@pytest.mark.parametrize(
    "rows",
    [
        [(text, label) for text, label in learnable_rows(40) if label != "other"],
        [(text, label.upper()) for text, label in learnable_rows(40)],
    ],
    ids=["fewer labels", "other labels"],
)
def test_a_teacher_of_other_labels_is_refused(
    rows: list[tuple[str, str]], tmp_path: Path, tiny_base: Path, exported_full: Exported
) -> None:
    problem = refusal_of(lay_out(tmp_path, rows=rows, loss=KD), tiny_base, exported_full)
    assert (problem.pointer, problem.code) == ("/loss/terms/1/loss/teacher", "teacher_does_not_fit")
    assert "'delivery', 'other', 'refund'" in problem.message


@pytest.mark.parametrize("order", [["refund", "other", "delivery"], None])
def test_a_teachers_labels_stand_in_the_same_order(
    order: Any, tmp_path: Path, tiny_base: Path, exported_full: Exported
) -> None:
    run = lay_out(tmp_path, loss=KD, task={"labels": order})
    if order is None:
        assert prepare_with(run, tiny_base, exported_full).targets.teacher is not None
    else:
        assert refusal_of(run, tiny_base, exported_full).code == "teacher_does_not_fit"


def test_a_teacher_that_is_read_otherwise_is_refused(tmp_path: Path, tiny_base: Path, exported_full: Exported) -> None:
    levels = {"type": "ordinal", "labels": ["delivery", "other", "refund"]}
    loss = {"terms": [{"loss": "coral"}, KD["terms"][1]]}
    problem = refusal_of(lay_out(tmp_path, loss=loss, task=levels), tiny_base, exported_full)
    assert problem.code == "teacher_does_not_fit"
    assert "read as 'softmax'" in problem.message
    assert "read as 'cumulative'" in problem.message


@pytest.mark.parametrize("loss", ["coral", "cumulative_link"])
def test_thresholds_of_levels_begin_where_the_rows_divide(loss: str, tmp_path: Path, tiny_base: Path) -> None:
    """Else an optimizer that moves each by its rate a step spends the run getting there."""
    levels = ["1"] * 80 + ["2"] * 30 + ["3"] * 10
    rows = [(f"parcel {i}", level) for i, level in enumerate(levels)]
    prepared = prepare_run(lay_out(tmp_path, rows=rows, loss=loss, task={"type": "ordinal"}), tiny_base)
    counts = np.array(list(prepared.resolved.train_counts.values()))
    expected = [(counts[1:].sum() + 0.5) / (counts.sum() + 1), (counts[2] + 0.5) / (counts.sum() + 1)]
    head = prepared.network.head
    assert isinstance(head, SharedHead)
    assert torch.sigmoid(head.biases).tolist() == pytest.approx(expected, rel=1e-5)
