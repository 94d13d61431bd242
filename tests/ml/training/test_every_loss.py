"""Every loss, in every task it is for, through the real training: steps, cut, resume, artifact. None is named here.

A new loss is tested by being in the table.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml.artifact.description import ONNX
from ml.data.splits import Part
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier
from ml.losses.combine import COMBINES
from ml.specs.losses.base import LossSpec, TaskType
from ml.specs.losses.composition import WeightSchedule
from ml.specs.losses.table import LOSS_SPECS, losses_for
from ml.training.errors import StoppedError
from ml.training.prepare import Prepared, prepare
from ml.training.run import Placement, RunDirectory
from ml.training.step import StepReport, backward_step
from tests.ml.conftest import Exported, export
from tests.ml.runs import MACHINE, fit_run, lay_out, read_events, series, stop_after, weights_sha256
from tests.ml.training.rows import Table, table_for
from tests.tiny_base import make_tiny_base

TEACHER = "mdl_teacher"


@dataclass(frozen=True)
class Case:
    """A loss in a task: by itself or, as an auxiliary term, beside the task's first loss."""

    loss: str
    task: TaskType
    is_soft: bool = False

    def __str__(self) -> str:
        return f"{self.loss}-{self.task}{'-soft' if self.is_soft else ''}"

    @property
    def spec(self) -> type[LossSpec]:
        return LOSS_SPECS[self.loss]

    @property
    def body(self) -> dict[str, Any]:
        """The loss as a job asks for it."""
        body = self.spec.example() | ({"teacher": TEACHER} if "teacher" in self.spec.needs else {})
        if not self.spec.auxiliary_for:
            return body
        return {"terms": [{"id": "main", "loss": losses_for(self.task)[0]}, {"loss": body, "weight": 0.5}]}

    @property
    def table(self) -> Table:
        is_pair = self.spec.readings.get(self.task) in ("sigmoid_pair", "score_pair")
        return table_for(self.task, is_pair=is_pair, is_soft=self.is_soft)

    def lay_out(self, folder: Path, loss: Any = None, **training: Any) -> RunDirectory:
        table = self.table
        columns = (
            table.columns if "group_dro" in str(loss) or "groups" in self.spec.needs else table.roles_without_groups
        )
        return lay_out(
            folder,
            rows=table.rows,
            headers=table.headers,
            columns=columns,
            training={"batch_size": 16, "max_length": 24, "dropout": 0.1, **training},
            loss=loss or self.body,
            task=table.task,
            split={"validation": 0.2, "test": 0},
        )


def all_cases() -> list[Case]:
    hard = [Case(loss, task) for loss, spec in LOSS_SPECS.items() for task in spec.tasks()]
    return hard + [replace(case, is_soft=True) for case in hard if case.spec.takes_soft_labels]


CASES = [pytest.param(case, id=str(case)) for case in all_cases()]


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base smaller still: so many runs are made on it."""
    return make_tiny_base(tmp_path_factory.mktemp("base"), layers=1)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, one_layer: Path) -> dict[TaskType, Exported]:
    """A model of each task that a loss may learn from, by the task's first loss."""
    asked = {case.task for case in all_cases() if "teacher" in case.spec.needs}
    return {
        task: export(run, prepare(run, Placement(base_models={"tiny": one_layer})))
        for task in sorted(asked)
        for run in [Case(losses_for(task)[0], task).lay_out(tmp_path_factory.mktemp("teacher"), max_steps=4)]
    }


class Place:
    """Prepares runs with the base and the teachers at hand."""

    def __init__(self, base: Path, teachers: dict[TaskType, Exported]) -> None:
        self._base, self._teachers = base, teachers

    def prepare(self, run: RunDirectory, task: TaskType) -> Prepared:
        teacher = self._teachers.get(task)
        known = {TEACHER: (teacher.artifact, teacher.runtime)} if teacher else {}
        return prepare(run, Placement(base_models={"tiny": self._base}, teachers=known))


@pytest.fixture(scope="module")
def place(one_layer: Path, teachers: dict[TaskType, Exported]) -> Place:
    return Place(one_layer, teachers)


# ------------------------------------------------------------------------------------------------ steps and an artifact


@pytest.mark.parametrize("case", CASES)
def test_it_learns_from_real_rows_and_its_artifact_answers(case: Case, tmp_path: Path, place: Place) -> None:
    run = case.lay_out(tmp_path, max_steps=2)
    prepared = place.prepare(run, case.task)
    before = weights_sha256(prepared.network)
    exported = export(run, prepared)
    losses, norms = series(run, "train/loss"), series(run, "train/grad_norm")
    assert list(losses) == [1, 2]
    assert all(map(math.isfinite, losses.values()))
    assert all(0 < norm < math.inf for norm in norms.values())
    assert weights_sha256(prepared.network) != before
    assert all(map(math.isfinite, exported.fitted.metrics["validation"].values()))

    # Loading replays the probe texts against the trained network.
    served = OnnxClassifier(exported.artifact, exported.runtime, OnnxBackend(exported.runtime / ONNX, 1))
    assert served.description.task == exported.fitted.state
    assert served.description.task.type == case.task
    results = served.task.decode(served.logits(served.tokenize(["hello", ("where is it", "here")])))
    for result in results:
        check_result(result, served)


def check_result(result: dict[str, Any], served: OnnxClassifier) -> None:
    """A reply as the task promises it."""
    state = served.description.task
    if state.type == "regression":
        assert math.isfinite(result["value"])
        return
    assert list(result["scores"]) == state.labels
    assert all(map(math.isfinite, result["scores"].values()))
    if state.type == "multi_label":
        assert set(result["labels"]) <= set(state.labels)
        return
    assert result["score"] == result["scores"][result["label"]]
    if state.temperature != 1 or served.task.has_probabilities:  # type: ignore[attr-defined]
        assert sum(result["scores"].values()) == pytest.approx(1)
        assert min(result["scores"].values()) >= 0


# ------------------------------------------------------------------------------------------------------------------ cut


class FixedMask(nn.Module):
    """Dropout that any cut repeats: what is dropped depends on the place in the last axis and on the pass alone."""

    p = 0.0

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.passes, self.calls = passes, 0

    def forward(self, x: Tensor) -> Tensor:
        kept = (torch.arange(x.shape[-1]) + self.calls % self.passes) % 4 != 0
        self.calls += 1
        return x * kept


def fix_dropout(network: nn.Module, passes: int) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            network.set_submodule(name, FixedMask(passes))


@contextmanager
def counted_passes(network: nn.Module) -> Iterator[list[int]]:
    """The rows of each forward pass in this block."""
    seen: list[int] = []
    hook = network.register_forward_hook(
        lambda _m, _a, kwargs, _o: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_same_however_it_is_cut_and_never_cut_where_rows_are_coupled(
    case: Case, tmp_path: Path, place: Place
) -> None:
    prepared = place.prepare(case.lay_out(tmp_path), case.task)
    objective = prepared.objective.double()
    passes = 2 if {"second_forward", "adversarial"} & objective.needs else 1
    network = prepared.network.double().train()
    fix_dropout(network, passes)
    rows = prepared.rows_of(Part.TRAIN)[:16]
    state = {name: value.clone() for name, value in objective.state_dict().items()}

    def step(micro_batch_rows: int | None, tokens: int = 10**6) -> tuple[StepReport, float, list[int]]:
        objective.load_state_dict(state)
        network.zero_grad()
        machine = replace(MACHINE, micro_batch_tokens=tokens)
        with counted_passes(network) as seen:
            batch = prepared.batch_of(rows, 0, prepared.tokens)
            report = backward_step(network, objective, batch, machine, micro_batch_rows, 0.5)
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return report, float(torch.cat(gradients).norm()), seen

    whole, norm, _ = step(None)
    assert norm > 0
    for cut, tokens in ((1, 10**6), (3, 10**6), (8, 10**6), (None, 100)):
        report, cut_norm, seen = step(cut, tokens)
        assert sum(seen) == passes * 16
        if objective.is_additive:
            assert max(seen) <= (cut or 15)
        else:
            assert seen == [16] * passes
        assert report.loss == pytest.approx(whole.loss, rel=1e-9)
        assert report.terms == pytest.approx(dict(whole.terms), rel=1e-9)
        assert cut_norm == pytest.approx(norm, rel=1e-9)


# ------------------------------------------------------------------------------------------------------ combine, resume

STEADY = Case("cross_entropy", "text_classification")
TERMS = [{"loss": {"type": "cross_entropy", "label_smoothing": 0.1}}, {"loss": "focal", "weight": 0.5}]
RISING = {"schedule": "cosine", "from": 0.0, "to": 0.5, "start": 0.2, "end": 0.8}
COMPOSITIONS: dict[str, Any] = {
    **{name: {"terms": TERMS, "combine": name} for name in COMBINES},
    "scheduled": {"terms": [TERMS[0], {"loss": "entropy_min", "weight": RISING}]},
    "two passes": {"terms": [TERMS[0], {"loss": "r_drop"}, {"loss": "fgm"}], "combine": "normalized"},
    "groups": {"terms": [{"loss": "group_dro"}, {"loss": "supcon", "weight": 0.1}], "combine": "dwa"},
    "deferred": {"type": "ldam", "deferred_epoch": 2, "scale": 10},
}
# 96 training rows in steps of 32: 3 an epoch, 12 in all. dwa weighs from the third epoch on.
LEARNING = {"epochs": 4, "batch_size": 32, "optimizer": {"type": "adamw", "learning_rate": 2e-3}}


@pytest.fixture(scope="module")
def fixed_digest(tmp_path_factory: pytest.TempPathFactory, place: Place) -> str:
    """The weights that the two terms end with when they are just added up."""
    run = STEADY.lay_out(tmp_path_factory.mktemp("fixed"), loss={"terms": TERMS}, **LEARNING)
    prepared = place.prepare(run, STEADY.task)
    fit_run(run, prepared)
    return weights_sha256(prepared.network)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_stopped_run_goes_on_to_the_same_bits_with_all_that_it_had_learned(
    name: str, tmp_path: Path, place: Place, fixed_digest: str
) -> None:
    def train(folder: str, *stops: int) -> tuple[RunDirectory, str, dict[str, Tensor], Any]:
        run = STEADY.lay_out(tmp_path / folder, loss=COMPOSITIONS[name], **LEARNING)
        for step in stops:
            with pytest.raises(StoppedError, match=f"step {step}"):
                fit_run(run, place.prepare(run, STEADY.task), stop_after(run, step))
        prepared = place.prepare(run, STEADY.task)
        fitted = fit_run(run, prepared)
        return run, weights_sha256(prepared.network), prepared.objective.state_dict(), fitted

    whole, digest, state, fitted = train("whole")
    stopped, other_digest, other_state, other = train("stopped", 4, 11)
    assert [event["data"]["step"] for event in read_events(stopped, "status")] == [4, 11]
    assert other_digest == digest
    assert other == fitted
    assert other_state.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(torch.nan_to_num(other_state[key]), torch.nan_to_num(value)), key
    assert list(series(whole, "train/loss")) == list(range(1, 13))
    assert series(stopped, "train/loss") == series(whole, "train/loss")
    # Every rule but fixed ends elsewhere; pcgrad leaves alone what does not conflict, as these two terms do not.
    if name in {*COMBINES} - {"fixed", "pcgrad"}:
        assert digest != fixed_digest


@pytest.mark.parametrize("shape", get_args(WeightSchedule.model_fields["schedule"].annotation))
def test_a_scheduled_weight_follows_the_share_of_steps_made(shape: str, tmp_path: Path, place: Place) -> None:
    weight = {"schedule": shape, "from": 0.25, "to": 2.0, "start": 0.25, "end": 0.75}
    loss = {"terms": [{"id": "main", "loss": "cross_entropy"}, {"id": "more", "loss": "entropy_min", "weight": weight}]}
    run = STEADY.lay_out(tmp_path, loss=loss, **LEARNING)
    fit_run(run, place.prepare(run, STEADY.task))
    whole, main, more = (series(run, f"train/loss{name}") for name in ("", "/main", "/more"))
    weights = np.array([(whole[step] - main[step]) / more[step] for step in range(1, 13)])
    assert weights[:4] == pytest.approx(0.25)  # progress 0, 1/12, 2/12 and 3/12, where it starts
    assert weights[9:] == pytest.approx(2.0)
    assert (np.diff(weights) >= -1e-9).all()
    assert (len(set(weights.round(6).tolist())) == 2) == (shape == "step")
