"""A model measured on a dataset: the figures are those of its answers, as a whole, by group and with changed texts."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from ml.bulk import evaluation
from ml.bulk.answers import CHUNK_TEXTS
from ml.bulk.evaluation import evaluate
from ml.bulk.report import ERRORS, OUTPUT, EvaluationReport
from ml.evaluation.groups import FEWEST_ROWS
from ml.specs.errors import SpecError
from ml.tasks.build import TaskState, build_task
from ml.training.errors import ExitCode, StoppedError
from ml.training.run import RunDirectory
from tests.ml.bulk.runs import lay_out, read_lines, run_child
from tests.ml.conftest import Exported
from tests.ml.runs import read_events
from tests.tiny_base import learnable_rows

HEADERS = ("text", "label", "split", "country")
# The last country has too few rows to be compared.
COUNTRIES = ["at"] * 60 + ["be"] * 50 + [""] * 40 + ["cz"] * (FEWEST_ROWS - 1)
ASKED: dict[str, Any] = {"group_column": "country", "perturbations": ["typo", "case", "whitespace"]}


def rows() -> list[tuple[str, ...]]:
    found = [
        (text, label, "train" if row % 10 == 0 else "test", country)
        for row, ((text, label), country) in enumerate(zip(learnable_rows(len(COUNTRIES), 5), COUNTRIES, strict=True))
    ]
    found[3] = ("", *found[3][1:])
    found[4] = (found[4][0], " ", *found[4][2:])
    return found


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def evaluated(
    exported_full: Exported, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDirectory, EvaluationReport]:
    run = lay_out(tmp_path_factory.mktemp("run"), "evaluation", exported_full, rows(), HEADERS, **ASKED)
    return run, evaluate(run, run.read_placement(), never)


def test_the_metrics_are_those_of_the_answers(evaluated: tuple[RunDirectory, EvaluationReport]) -> None:
    run, report = evaluated
    lines = read_lines(run.output / OUTPUT)
    assert [line["row"] for line in lines] == [row for row in range(1, len(COUNTRIES) + 1) if row not in (4, 5)]
    assert [line["expected"] for line in lines] == [rows()[line["row"] - 1][1] for line in lines]
    accuracy = accuracy_score([line["expected"] for line in lines], [line["label"] for line in lines])
    assert report.metrics["accuracy"] == pytest.approx(accuracy)
    assert np.mean([line["is_right"] for line in lines]) == pytest.approx(accuracy)
    assert 0 < accuracy < 1
    assert {"macro_f1", "ece", "brier"} < set(report.metrics)
    assert report.report["reliability"]
    counts = {"total": len(COUNTRIES), "completed": len(lines), "failed": 2}
    assert report.request_counts.model_dump() == counts
    assert read_events(run, "progress")[-1]["data"]["request_counts"] == counts


def test_rows_that_cannot_be_measured_are_told_of(evaluated: tuple[RunDirectory, EvaluationReport]) -> None:
    told = read_lines(evaluated[0].output / ERRORS)
    assert [(line["row"], line["code"]) for line in told] == [(4, "empty_text"), (5, "missing_label")]


def test_each_group_is_measured_and_small_ones_are_not_compared(
    evaluated: tuple[RunDirectory, EvaluationReport],
) -> None:
    run, report = evaluated
    assert [(group.value, group.rows, group.is_small) for group in report.groups] == [
        ("at", 58, False),
        ("be", 50, False),
        (None, 40, False),
        ("cz", FEWEST_ROWS - 1, True),
    ]
    lines = read_lines(run.output / OUTPUT)
    for group in report.groups:
        own = [line["is_right"] for line in lines if (COUNTRIES[line["row"] - 1] or None) == group.value]
        assert group.metrics["accuracy"] == pytest.approx(np.mean(own))
    large = {group.value: group.metrics["accuracy"] for group in report.groups if not group.is_small}
    gap = report.gaps["accuracy"]
    assert gap.gap == pytest.approx(max(large.values()) - min(large.values()))
    assert (large[gap.highest], large[gap.lowest]) == (max(large.values()), min(large.values()))


def test_each_perturbation_says_what_becomes_of_metrics_and_answers(
    evaluated: tuple[RunDirectory, EvaluationReport],
) -> None:
    run, report = evaluated
    lines = read_lines(run.output / OUTPUT)
    assert [one.type for one in report.perturbations] == ASKED["perturbations"]
    by_type = {one.type: one for one in report.perturbations}
    for name, one in by_type.items():
        changed = [line["perturbed"][name]["label"] != line["label"] for line in lines]
        assert one.answers_changed == pytest.approx(np.mean(changed))
        assert one.difference["accuracy"] == pytest.approx(one.metrics["accuracy"] - report.metrics["accuracy"])
    assert by_type["typo"].answers_changed > 0
    assert by_type["case"].answers_changed == 0  # the tiny base is uncased
    assert by_type["case"].texts_changed == by_type["whitespace"].texts_changed == len(lines)
    assert set(lines[0]["perturbed"]["typo"]) == {"label", "score"}


def test_a_part_alone_can_be_measured(exported_full: Exported, tmp_path: Path) -> None:
    run = lay_out(tmp_path, "evaluation", exported_full, rows(), HEADERS, part="train")
    report = evaluate(run, run.read_placement(), never)
    assert [line["row"] for line in read_lines(run.output / OUTPUT)] == list(range(1, len(COUNTRIES), 10))
    assert (report.groups, report.gaps, report.perturbations) == ([], {}, [])


def test_an_evaluation_that_is_stopped_comes_to_the_same_figures(exported_full: Exported, tmp_path: Path) -> None:
    many = [(text, label) for text, label in learnable_rows(CHUNK_TEXTS + 10, 3)]

    def make(name: str) -> RunDirectory:
        return lay_out(tmp_path / name, "evaluation", exported_full, many, perturbations=["typo"])

    straight, stopped = make("straight"), make("stopped")
    expected = evaluate(straight, straight.read_placement(), never)
    for _ in range(2):
        asked = itertools.count()
        with pytest.raises(StoppedError):
            evaluate(stopped, stopped.read_placement(), lambda asked=asked: next(asked) > 0)  # type: ignore[misc]
    assert evaluate(stopped, stopped.read_placement(), never) == expected
    resumed = [event["data"]["step"] for event in read_events(stopped, "status")]
    assert resumed == [CHUNK_TEXTS, 2 * CHUNK_TEXTS]


def test_a_child_does_it_without_torch(exported_full: Exported, tmp_path: Path) -> None:
    run = lay_out(tmp_path, "evaluation", exported_full, rows(), HEADERS, **ASKED)
    assert run_child(run) == ExitCode.DONE
    assert EvaluationReport.model_validate_json((run.path / "result.json").read_bytes()).gaps


def test_a_dataset_of_other_labels_is_refused(exported_full: Exported, tmp_path: Path) -> None:
    run = lay_out(tmp_path, "evaluation", exported_full, [("hello", "never heard of")])
    with pytest.raises(SpecError, match="which the model doesn't know"):
        evaluate(run, run.read_placement(), never)


class FakeClassifier:
    """Answers with the number that stands in a text, in the first output and its opposite in the second."""

    def __init__(self, state: TaskState) -> None:
        self.description = SimpleNamespace(task=state)
        self.task = build_task(state)

    def tokenize(self, texts: list[str]) -> list[str]:
        return texts

    def is_truncated(self, text: str) -> bool:
        return False

    def logits(self, texts: list[str]) -> np.ndarray:
        numbers = np.array([[float(text), -float(text)] for text in texts], np.float32)
        return numbers[:, : self.task.width]


def state_of(kind: str, reading: str, labels: tuple[str, ...] = ("cold", "warm")) -> TaskState:
    return TaskState.model_validate({"type": kind, "reading": reading, "labels": list(labels)})


@pytest.mark.parametrize(
    ("state", "labels", "metric", "expected", "right"),
    [
        (state_of("multi_label", "sigmoid"), ['["cold"]', "[]"], "exact_match", ["cold"], True),
        (state_of("ordinal", "softmax"), ["cold", "cold"], "qwk", "cold", True),
        (
            state_of("text_classification", "softmax"),
            ['{"cold": 3, "warm": 1}', '{"cold": 1}'],
            "accuracy",
            {"cold": 0.75, "warm": 0.25},
            True,
        ),
        (state_of("regression", "identity", ()), ["1.5", "2"], "mae", 1.5, None),
    ],
)
def test_every_task_is_measured_by_its_own_metrics(
    tmp_path: Path, exported_full: Exported, monkeypatch: pytest.MonkeyPatch,
    state: TaskState, labels: list[str], metric: str, expected: Any, right: bool | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(evaluation, "load_model", lambda _placement: FakeClassifier(state))
    texts = ["2.5", "-3"]
    run = lay_out(tmp_path, "evaluation", exported_full, list(zip(texts, labels, strict=True)))
    assert metric in evaluate(run, run.read_placement(), never).metrics
    line = read_lines(run.output / OUTPUT)[0]
    assert (line["expected"], line.get("is_right")) == (expected, right)
