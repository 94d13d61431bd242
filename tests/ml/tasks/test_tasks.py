"""Every task under every reading: encode, decode, evaluate, report, fit, and the way through JSON."""

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ml.evaluation.calibration import log_loss
from ml.evaluation.scores import sigmoid
from ml.tasks.base import Array, Calibration, Targets, Task
from ml.tasks.build import TaskState, build_task, fitted_state
from ml.tasks.multi_label import MultiLabelTask
from ml.tasks.regression import RegressionTask
from ml.tasks.text_classification import TextClassificationTask

LABELS = ["no", "maybe", "yes"]

STATES = {
    **{
        f"{kind}-{reading}": TaskState(type=kind, reading=reading, labels=LABELS[:labels])  # type: ignore[arg-type]
        for kind, reading, labels in [
            ("text_classification", "softmax", 3),
            ("text_classification", "scores", 3),
            ("text_classification", "sigmoid_pair", 2),
            ("text_classification", "score_pair", 2),
            ("multi_label", "sigmoid", 3),
            ("multi_label", "multi_scores", 3),
            ("ordinal", "softmax", 3),
            ("ordinal", "cumulative", 3),
            ("ordinal", "conditional", 3),
            ("ordinal", "rank", 3),
        ]
    },
    "one-label": TaskState(type="multi_label", reading="sigmoid", labels=["only"]),
    "soft": TaskState(type="text_classification", reading="softmax", labels=LABELS, is_soft=True),
    "value": TaskState(type="regression", reading="value", shift=10, scale=4),
    "log_rate": TaskState(type="regression", reading="log_rate"),
    "normal": TaskState(type="regression", reading="normal", shift=10, scale=4),
    "quantiles": TaskState(type="regression", reading="quantiles", shift=10, scale=4, quantiles=[0.1, 0.5, 0.9]),
}
LABELLED = {name: state for name, state in STATES.items() if state.type != "regression"}

every_task = pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
every_labelled_task = pytest.mark.parametrize("state", LABELLED.values(), ids=LABELLED.keys())


def cells_for(state: TaskState, rows: int = 60) -> list[str]:
    """Label cells as they would be uploaded."""
    generator = np.random.default_rng(0)
    if state.type == "regression":
        return [str(count) for count in generator.poisson(10, rows)]
    if state.type == "multi_label":
        given = generator.random((rows, len(state.labels))) < 0.4
        return [json.dumps(np.array(state.labels)[row].tolist()) for row in given]
    if state.is_soft:
        votes = generator.integers(1, 9, (rows, 3)).tolist()
        return [json.dumps(dict(zip(LABELS, row, strict=True))) for row in votes]
    return [state.labels[i] for i in generator.integers(0, len(state.labels), rows)]


def rows_for(state: TaskState) -> tuple[Task, Array, Targets]:
    """The task, outputs (N, H) as float32 and the targets of some rows."""
    task = build_task(state)
    targets = task.encode(cells_for(state))
    return task, (2 * np.random.default_rng(1).normal(size=(len(targets), task.width))).astype(np.float32), targets


# ----------------------------------------------------------------------------------------------------------- every task


@every_task
def test_metrics_are_finite_floats_and_all_that_is_answered_is_json(state: TaskState) -> None:
    task, outputs, targets = rows_for(state)
    metrics = task.evaluate(outputs, targets)
    assert len(metrics) >= 5
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert len(task.decode(outputs)) == len(targets)
    for said in (task.report(outputs, targets), task.decode(outputs), metrics):
        assert json.loads(json.dumps(said, allow_nan=False)) == said


@every_task
def test_a_state_comes_back_from_json_as_the_same_task(state: TaskState) -> None:
    task, outputs, targets = rows_for(state)
    for calibrate in (None, "temperature", "platt"):
        fitted = task.fitted(outputs, targets, calibrate=calibrate, thresholds="f1")
        text = fitted_state(state, fitted).model_dump_json()
        again = build_task(TaskState.model_validate_json(text))
        assert again == fitted
        assert again.decode(outputs) == fitted.decode(outputs)


@every_task
def test_nothing_is_fitted_unless_asked(state: TaskState) -> None:
    task, outputs, targets = rows_for(state)
    assert task.fitted(outputs, targets, calibrate=None, thresholds=None) == task


@every_task
def test_no_rows_are_no_metrics(state: TaskState) -> None:
    task, outputs, targets = rows_for(state)
    with pytest.raises(ValueError, match="truth has no rows"):
        task.evaluate(outputs[:0], targets[:0])
    assert task.decode(outputs[:0]) == []


@every_task
def test_a_row_is_read_the_same_alone_and_among_others(state: TaskState) -> None:
    task, outputs, _ = rows_for(state)
    assert [task.decode(outputs[i : i + 1])[0] for i in range(len(outputs))] == task.decode(outputs)


# ---------------------------------------------------------------------------------------------------------- calibration


@every_labelled_task
def test_temperature_never_raises_the_validation_loss(state: TaskState) -> None:
    task, outputs, targets = rows_for(state)
    before = task.evaluate(outputs, targets)
    after = task.fitted(outputs, targets, calibrate="temperature", thresholds=None).evaluate(outputs, targets)
    assert after.keys() == before.keys()
    assert after.get("loss", 0) <= before.get("loss", 0)


@pytest.mark.parametrize("name", ["text_classification-softmax", "text_classification-sigmoid_pair", "soft"])
def test_temperature_changes_no_answer(name: str) -> None:
    task, outputs, targets = rows_for(STATES[name])
    fitted = task.fitted(outputs, targets, calibrate="temperature", thresholds=None)
    assert fitted != task
    assert [one["label"] for one in fitted.decode(outputs)] == [one["label"] for one in task.decode(outputs)]


@pytest.mark.parametrize("name", ["text_classification-scores", "text_classification-score_pair", "ordinal-rank"])
def test_scores_become_probabilities_by_platt_and_are_left_alone_by_temperature(name: str) -> None:
    task, outputs, targets = rows_for(STATES[name])
    assert task.fitted(outputs, targets, calibrate="temperature", thresholds=None) == task
    assert "loss" not in task.evaluate(outputs, targets)
    assert "reliability" not in task.report(outputs, targets)
    fitted = task.fitted(outputs, targets, calibrate="platt", thresholds=None)
    for result in fitted.decode(outputs):
        assert sum(result["scores"].values()) == pytest.approx(1)
        assert all(0 <= score <= 1 for score in result["scores"].values())
    assert {"loss", "ece", "brier"} <= fitted.evaluate(outputs, targets).keys()
    assert "reliability" in fitted.report(outputs, targets)


def test_platt_makes_calibrated_probabilities_of_hinge_scores() -> None:
    generator = np.random.default_rng(0)
    task = build_task(STATES["text_classification-score_pair"])
    truth = generator.integers(0, 2, 20_000)
    outputs = 3 * (2 * truth[:, None] - 1) + 4 * generator.normal(size=(20_000, 1))
    fitted = task.fitted(outputs[:10_000], truth[:10_000], calibrate="platt", thresholds=None)
    assert fitted.evaluate(outputs[10_000:], truth[10_000:])["ece"] < 0.02


def test_platt_of_a_text_far_from_every_label_is_still_a_distribution() -> None:
    task = build_task(TaskState(type="text_classification", reading="scores", labels=LABELS, platt=[[50, 0]] * 3))
    (result,) = task.decode(np.array([[-100.0, -99.0, -101.0]]))
    assert result["label"] == "maybe"
    assert sum(result["scores"].values()) == pytest.approx(1)


def test_platt_keeps_a_class_that_validation_lacks() -> None:
    task = build_task(STATES["text_classification-scores"])
    outputs = np.random.default_rng(0).normal(size=(4, 3))
    fitted = task.fitted(outputs, np.array([0, 1, 0, 1]), calibrate="platt", thresholds=None)
    assert isinstance(fitted, TextClassificationTask)
    assert fitted.calibration.platt is not None
    assert fitted.calibration.platt[2] == (1.0, 0.0)


# -------------------------------------------------------------------------------------------------- text_classification


def test_names_become_ids_in_the_order_of_the_labels() -> None:
    targets = build_task(STATES["text_classification-softmax"]).encode(["yes", "no", "maybe", "yes"])
    assert targets.tolist() == [2, 0, 1, 2]
    assert targets.dtype == np.int64


@pytest.mark.parametrize(("name", "cell"), [("text_classification-softmax", "perhaps"), ("soft", '{"perhaps": 1}')])
def test_an_unknown_name_is_no_label(name: str, cell: str) -> None:
    with pytest.raises(KeyError, match="perhaps"):
        build_task(STATES[name]).encode([cell])


def test_the_likeliest_label_is_the_answer_with_its_probability() -> None:
    task = build_task(STATES["text_classification-softmax"])
    first, second = task.decode(np.log(np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], np.float32)))
    assert (first["label"], second["label"]) == ("maybe", "no")
    assert first["score"] == pytest.approx(0.5)
    assert list(first["scores"]) == LABELS
    assert first["scores"] == pytest.approx({"no": 0.2, "maybe": 0.5, "yes": 0.3})


@pytest.mark.parametrize("name", ["text_classification-softmax", "text_classification-scores"])
def test_decoding_undoes_encoding(name: str) -> None:
    task = build_task(STATES[name])
    ids = task.encode(["yes", "no", "maybe"])
    assert [result["label"] for result in task.decode(np.eye(3)[ids] * 5)] == ["yes", "no", "maybe"]


def test_metrics_are_those_of_the_likeliest_label() -> None:
    task = build_task(STATES["text_classification-softmax"])
    outputs = np.log(np.array([[0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4]], np.float32))
    metrics = task.evaluate(outputs, np.array([0, 1, 2]))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["loss"] == pytest.approx(-np.log([0.6, 0.8, 0.4]).mean())
    report = task.report(outputs, np.array([0, 1, 2]))
    assert report["confusion"]["matrix"] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert report["labels"]["no"] == pytest.approx({"precision": 0.5, "recall": 1, "f1": 2 / 3, "rows": 1})
    assert sum(one["rows"] for one in report["reliability"]) == 3


def test_soft_labels_become_distributions_and_are_measured_at_their_likeliest() -> None:
    task = build_task(STATES["soft"])
    targets = task.encode(['{"yes": 3, "no": 1}', '{"maybe": 1}'])
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, [[0.25, 0, 0.75], [0, 1, 0]])
    outputs = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert task.evaluate(outputs, targets)["accuracy"] == 0.5
    hard = build_task(STATES["text_classification-softmax"])
    assert task.evaluate(outputs, targets) == hard.evaluate(outputs, np.array([2, 1]))


# ---------------------------------------------------------------------------------------------------------- multi_label


def test_lists_of_names_become_zeros_and_ones() -> None:
    targets = build_task(STATES["multi_label-sigmoid"]).encode(['["yes", "no"]', "[]", '["no", "no"]'])
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_every_label_that_passes_its_threshold_is_given() -> None:
    state = TaskState(type="multi_label", reading="sigmoid", labels=LABELS, thresholds=[0.9, 0.5, 0.1])
    scores = np.array([[0.8, 0.6, 0.2], [0.1, 0.1, 0.05]])
    first, second = build_task(state).decode(np.log(scores / (1 - scores)))
    assert (first["labels"], second["labels"]) == (["maybe", "yes"], [])
    assert first["score"] == pytest.approx(0.8)
    assert first["scores"] == pytest.approx({"no": 0.8, "maybe": 0.6, "yes": 0.2})


@pytest.mark.parametrize("name", ["multi_label-sigmoid", "multi_label-multi_scores", "one-label"])
@pytest.mark.parametrize("calibrate", [None, "temperature", "platt"])
def test_fitted_thresholds_are_at_least_as_good_as_one_half(name: str, calibrate: str | None) -> None:
    task, outputs, targets = rows_for(STATES[name])
    metrics = task.fitted(outputs, targets, calibrate=calibrate, thresholds="f1").evaluate(outputs, targets)
    assert metrics["macro_f1"] >= metrics["macro_f1_at_half"]


def test_one_half_stands_for_a_score_of_zero_where_scores_are_no_probabilities() -> None:
    task = build_task(STATES["multi_label-multi_scores"])
    assert task.decode(np.array([[-0.1, 0.1, 3.0]]))[0]["labels"] == ["maybe", "yes"]
    _, outputs, targets = rows_for(STATES["multi_label-multi_scores"])
    assert task.fitted(outputs, targets, calibrate="temperature", thresholds=None) == task


def test_platt_reads_each_label_by_itself() -> None:
    task, outputs, targets = rows_for(STATES["multi_label-multi_scores"])
    fitted = task.fitted(outputs, targets, calibrate="platt", thresholds=None)
    assert isinstance(fitted, MultiLabelTask)
    assert fitted.calibration.platt is not None
    a, b = np.array(fitted.calibration.platt).T
    np.testing.assert_allclose(fitted.scores(outputs), sigmoid(outputs.astype(np.float64) * a + b))


# -------------------------------------------------------------------------------------------------------------- ordinal


@pytest.mark.parametrize("reading", ["softmax", "cumulative", "conditional", "rank"])
def test_levels_are_also_measured_by_how_far_off_they_are(reading: str) -> None:
    task, outputs, targets = rows_for(STATES[f"ordinal-{reading}"])
    metrics = task.evaluate(outputs, targets)
    answers = task.encode([result["label"] for result in task.decode(outputs)])
    assert metrics["mae"] == pytest.approx(np.abs(answers - targets).mean())
    assert metrics["accuracy"] == pytest.approx((answers == targets).mean())
    assert {"qwk", "spearman", "macro_f1", "roc_auc"} <= metrics.keys()


def test_the_answer_of_levels_is_their_median() -> None:
    task = build_task(STATES["ordinal-cumulative"])
    passed = np.array([[0.55, 0.3]])  # P(y > no), P(y > maybe)
    (result,) = task.decode(np.log(passed / (1 - passed)))
    assert result["label"] == "maybe"
    assert max(result["scores"], key=result["scores"].__getitem__) == "no"
    assert result["score"] == pytest.approx(0.25)


# ----------------------------------------------------------------------------------------------------------- regression


@pytest.mark.parametrize("name", ["value", "normal"])
def test_numbers_are_standardised_for_training_and_put_back_for_answers(name: str) -> None:
    task = build_task(STATES[name])
    targets = task.encode(["10", "14", "-2.0"])
    assert targets.dtype == np.float32
    assert targets.tolist() == [0, 1, -3]
    outputs = np.repeat(targets[:, None], task.width, 1)
    assert [result["value"] for result in task.decode(outputs)] == pytest.approx([10, 14, -2])


def test_metrics_are_in_the_units_of_the_target() -> None:
    task = build_task(STATES["value"])
    targets = task.encode(["10", "14", "18"])
    metrics = task.evaluate(targets[:, None] + 0.5, targets)
    assert metrics == pytest.approx({"mae": 2, "rmse": 2, "r2": 1 - 12 / 32, "pearson": 1, "spearman": 1})
    report = task.report(targets[:, None] + 0.5, targets)
    assert report["quantiles_of_error"] == pytest.approx(dict.fromkeys(["0.05", "0.25", "0.5", "0.75", "0.95"], 2.0))


def test_a_deviation_and_quantiles_are_answered_where_the_loss_gives_them() -> None:
    (normal,) = build_task(STATES["normal"]).decode(np.array([[0.5, 0.0]]))
    assert normal == pytest.approx({"value": 12, "standard_deviation": 4})
    (quantiles,) = build_task(STATES["quantiles"]).decode(np.array([[-1.0, 0.5, 1.0]]))
    assert quantiles["value"] == pytest.approx(12)
    assert quantiles["quantiles"] == pytest.approx({"0.1": 6, "0.5": 12, "0.9": 14})
    (rate,) = build_task(STATES["log_rate"]).decode(np.array([[np.log(7.0)]]))
    assert rate == pytest.approx({"value": 7})


def test_a_regression_has_nothing_to_fit() -> None:
    task, outputs, targets = rows_for(STATES["value"])
    assert isinstance(task, RegressionTask)
    assert task.fitted(outputs, targets, calibrate="temperature", thresholds="f1") is task


# --------------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"scale": 0}, {"platt": [[1.0]]}, {"type": "other"}, {"unknown": 1}]
)
def test_a_state_that_cannot_be_read_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        TaskState.model_validate({"type": "text_classification", "reading": "softmax", "labels": LABELS} | fields)


def test_a_temperature_in_a_state_is_used() -> None:
    state = STATES["text_classification-softmax"]
    task = build_task(state.model_copy(update={"temperature": 2.5}))
    assert isinstance(task, TextClassificationTask)
    assert task.calibration == Calibration(2.5)
    outputs = np.array([[5.0, 0.0, 0.0]])
    plain = build_task(state)
    assert isinstance(plain, TextClassificationTask)
    np.testing.assert_allclose(task.scores(outputs), plain.scores(outputs / 2.5))
    assert log_loss(task.scores(outputs), np.array([0])) > log_loss(plain.scores(outputs), np.array([0]))


def test_reading_answers_loads_neither_torch_nor_scikit_learn_nor_scipy() -> None:
    """The API process imports these modules: it must start fast and stay small."""
    program = (
        "import sys, numpy\n"
        "from ml.tasks.build import TaskState, build_task\n"
        "state = TaskState(type='multi_label', reading='sigmoid', labels=['a', 'b'], platt=[[1, 0], [1, 0]])\n"
        "build_task(state).decode(numpy.zeros((1, 2)))\n"
        "print(*sorted({'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
