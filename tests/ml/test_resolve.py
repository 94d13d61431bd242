"""A spec meets a dataset: what is filled in, and what cannot work. What is wrong with a loss: `test_loss_checks`."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ml.data.splits import Part
from ml.resolve import DEFAULT_METRIC, METRICS, Resolved
from ml.specs.job import EarlyStopping
from ml.specs.losses.composition import Composition
from ml.specs.losses.single_label import CrossEntropySpec
from ml.specs.optimizers import AdamW, Sgd
from ml.specs.tasks import Regression
from ml.tasks.build import build_task
from tests.ml.datasets import COUNTS, DISTRIBUTIONS, GRADES, GROUPS, LABELS, LISTS, NUMBERS, Dataset, base


def test_what_was_left_open_is_filled_in() -> None:
    resolved = Dataset().resolve()
    assert resolved.spec.loss == CrossEntropySpec(type="cross_entropy")
    assert resolved.spec.task is not None
    assert resolved.spec.task.labels == ["negative", "neutral", "positive"]
    assert resolved.state.labels == ["negative", "neutral", "positive"]
    assert (resolved.state.type, resolved.state.reading, resolved.state.is_soft) == (
        *("text_classification", "softmax"),
        False,
    )
    assert resolved.spec.training.optimizer.learning_rate == 1e-4
    assert resolved.warnings == ()


def test_train_counts_are_those_of_the_training_part() -> None:
    resolved = Dataset().resolve()
    training = Counter(np.array(LABELS)[resolved.parts == Part.TRAIN].tolist())
    assert resolved.train_counts == training
    assert list(resolved.train_counts) == resolved.state.labels
    assert sum(resolved.train_counts.values()) == resolved.train_rows == 80


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"loss": "focal", "tuning": {"type": "frozen"}},
        {"task": {"labels": ["positive", "neutral", "negative"]}, "training": {"seed": 4}},
        {"loss": {"type": "cross_entropy", "class_weights": {"scheme": "effective_number"}}},
        {"split": {"group_column": "user", "test": 0}, "training": {"early_stopping": {}}},
    ],
)
def test_a_resolved_spec_resolves_to_itself(body: dict[str, Any]) -> None:
    dataset = Dataset(user=[f"user {i % 25}" for i in range(100)])
    once = dataset.resolve(**body)
    assert_stays(dataset, once)


def assert_stays(dataset: Dataset, once: Resolved) -> None:
    """What came of resolving comes of resolving it again."""
    again = dataset.resolve(**once.spec.model_dump())
    assert again.spec == once.spec
    assert again.state == once.state
    assert again.train_counts == once.train_counts
    assert (again.parts == once.parts).all()
    assert (again.groups, again.warnings) == (once.groups, once.warnings)


def test_a_dataset_whose_group_column_was_named_at_upload_is_split_by_it() -> None:
    dataset = Dataset(group=[f"user {i % 25}" for i in range(100)])
    resolved = dataset.resolve()
    assert resolved.spec.split.group_column == "group"
    assert resolved.groups == ()  # no loss asks for them
    for i in range(25):
        assert len(set(resolved.parts[i::25].tolist())) == 1


def test_a_loss_that_compares_groups_has_rows_of_each_in_several_parts() -> None:
    dataset = Dataset(group=GROUPS)
    resolved = dataset.resolve(loss="group_dro")
    assert resolved.spec.split.group_column is None
    assert resolved.groups == ("group 0", "group 1", "group 2", "group 3")
    for group in range(4):
        assert len(set(resolved.parts[group::4].tolist())) > 1
    assert_stays(dataset, resolved)
    told = dataset.resolve(loss="group_dro", split={"group_column": "group"})
    assert told.spec.split.group_column == "group"


@pytest.mark.parametrize(
    ("hidden_size", "tuning", "expected"),
    [(384, "full", 1e-4), (512, "full", 1e-4), (513, "full", 3e-5), (768, "full", 3e-5), (768, "frozen", 1e-2)],
)
def test_the_learning_rate_depends_on_the_width_of_the_encoder(hidden_size: int, tuning: str, expected: float) -> None:
    resolved = Dataset().resolve(base(hidden_size=hidden_size), tuning={"type": tuning})
    assert resolved.spec.training.optimizer.learning_rate == expected


@pytest.mark.parametrize(
    ("kind", "full", "frozen"),
    [
        ("sgd", 1e-2, 0.1),
        ("adam", 1e-4, 1e-2),
        ("adamax", 2e-4, 2e-2),
        ("adafactor", 1e-3, 0.1),
        ("lamb", 2e-3, 2e-2),
        ("lion", 2e-5, 2e-3),
    ],
)
def test_the_learning_rate_depends_on_the_optimizer(kind: str, full: float, frozen: float) -> None:
    for tuning, expected in (("full", full), ("top_layers", full), ("frozen", frozen)):
        resolved = Dataset().resolve(tuning=tuning, training={"optimizer": kind})
        assert resolved.spec.training.optimizer.learning_rate == expected
        assert_stays(Dataset(), resolved)


@pytest.mark.parametrize("optimizer", [AdamW(type="adamw", learning_rate=0.5), Sgd(type="sgd", learning_rate=0.5)])
def test_a_learning_rate_that_was_given_stays(optimizer: AdamW | Sgd) -> None:
    assert Dataset().resolve(training={"optimizer": optimizer.model_dump()}).spec.training.optimizer == optimizer


def test_labels_keep_the_order_that_was_given() -> None:
    order = ["positive", "neutral", "negative"]
    resolved = Dataset().resolve(task={"labels": order})
    assert resolved.state.labels == order
    assert list(resolved.train_counts) == order


def test_labels_that_lack_one_or_name_an_unknown_one_are_refused() -> None:
    problem = Dataset().refuse(task={"labels": ["negative", "positive", "nuetral"]})
    assert problem.pointer == "/task/labels"
    assert "lacks 'neutral'" in problem.message
    assert "has 'nuetral', which no row has" in problem.message


def test_one_label_only_leaves_nothing_to_tell_apart() -> None:
    problem = Dataset(["spam"] * 50).refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "one_class_only")
    assert "'spam'" in problem.message


def test_a_training_part_of_one_label_is_refused() -> None:
    problem = Dataset(["a"] * 10 + ["b"] * 10, split=["train"] * 10 + ["test"] * 10).refuse()
    assert (problem.pointer, problem.code) == ("/split", "one_class_only")


def test_a_dataset_without_a_label_column_says_how_to_name_one() -> None:
    problem = Dataset(None, intent=["x"] * 5).refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "missing_label_column")
    assert "text, intent" in problem.message


def test_a_row_without_text_is_refused_by_its_number() -> None:
    dataset = Dataset()
    dataset.facts = dataset.facts.model_copy(update={"empty_texts": 3, "first_empty_text": 17})
    problem = dataset.refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "row_without_text")
    assert "3 rows" in problem.message
    assert "row 17" in problem.message


def test_a_row_without_a_label_is_refused_by_its_number() -> None:
    problem = Dataset([*LABELS[:40], None, *LABELS[41:]]).refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "row_without_label")
    assert "row 41" in problem.message


def test_an_unknown_group_column_is_told_which_one_is_near() -> None:
    problem = Dataset(user=["u"] * 100).refuse(split={"group_column": "usr"})
    assert (problem.pointer, problem.code) == ("/split/group_column", "unknown_column")
    assert "Did you mean 'user'?" in problem.message


def test_a_text_longer_than_the_base_reads_is_refused() -> None:
    problem = Dataset().refuse(base(max_length=64), training={"max_length": 65})
    assert problem.pointer == "/training/max_length"
    assert "65" in problem.message
    assert "at most 64" in problem.message
    assert Dataset().resolve(base(max_length=64), training={"max_length": 64}).spec.training.max_length == 64


def test_early_stopping_needs_a_validation_part() -> None:
    problem = Dataset().refuse(split={"validation": 0}, training={"early_stopping": {}})
    assert (problem.pointer, problem.code) == ("/training/early_stopping", "no_validation_rows")


def test_groups_too_large_for_a_part_leave_it_empty_and_are_warned_of() -> None:
    dataset = Dataset(user=[f"user {i % 3}" for i in range(100)])
    resolved = dataset.resolve(split={"group_column": "user"})
    assert set(resolved.parts.tolist()) == {Part.TRAIN}
    validation, test = resolved.warnings
    assert validation.startswith("the validation part is empty, so nothing is calibrated")
    assert test.startswith("the test part is empty, so the final model is not tested.")
    for warning in (validation, test):
        assert "of the 3 groups" in warning
        assert "Take a larger share" in warning
    assert_stays(dataset, resolved)
    assert dataset.resolve(split={"group_column": "user", "validation": 0, "test": 0}).warnings == ()
    problem = dataset.refuse(split={"group_column": "user"}, training={"early_stopping": {}})
    assert (problem.pointer, problem.code) == ("/training/early_stopping", "no_validation_rows")
    assert "of the 3 groups" in problem.message


def test_a_share_of_few_rows_that_rounds_to_none_is_warned_of() -> None:
    dataset = Dataset(["a", "b"] * 2)
    resolved = dataset.resolve(split={"test": 0})
    (warning,) = resolved.warnings
    assert "the validation part is empty" in warning
    assert "split.validation is 0.1, and 4 rows are too few" in warning
    assert_stays(dataset, resolved)
    problem = dataset.refuse(split={"test": 0}, training={"early_stopping": {}})
    assert (problem.pointer, problem.code) == ("/training/early_stopping", "no_validation_rows")
    assert "4 rows are too few" in problem.message


def test_free_text_is_not_taken_for_labels() -> None:
    problem = Dataset([f"sentence {i}" for i in range(150)]).refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "too_many_labels")
    assert "150 different labels" in problem.message


def test_many_labels_with_rows_enough_are_fine() -> None:
    assert len(Dataset([f"intent {i % 150}" for i in range(600)]).resolve().state.labels) == 150


def test_dropout_on_a_frozen_encoder_is_warned_of() -> None:
    (warning,) = Dataset().resolve(tuning={"type": "frozen"}, training={"dropout": 0.1}).warnings
    assert "head alone" in warning
    assert Dataset().resolve(training={"dropout": 0.1}).warnings == ()


# --------------------------------------------------------------------------------------------------- task, from columns


@pytest.mark.parametrize(
    ("cells", "loss", "task", "chosen"),
    [
        (LABELS, None, "text_classification", "cross_entropy"),
        (LABELS, "hinge", "text_classification", "hinge"),
        (LISTS, None, "multi_label", "bce"),
        (LISTS, "zlpr", "multi_label", "zlpr"),
        (DISTRIBUTIONS, None, "text_classification", "soft_cross_entropy"),
        (DISTRIBUTIONS, "kl", "text_classification", "kl"),
        (NUMBERS, None, "regression", "mse"),
        (NUMBERS, "pinball", "regression", "pinball"),
        (GRADES, None, "text_classification", "cross_entropy"),
        (GRADES, "focal", "text_classification", "focal"),
        (GRADES, "corn", "ordinal", "corn"),
        (GRADES, "mse", "ordinal", "mse"),
        (GRADES, "poisson_nll", "regression", "poisson_nll"),
        (COUNTS, "poisson_nll", "regression", "poisson_nll"),
        (GRADES, {"terms": [{"loss": "cross_entropy"}, {"loss": "sord"}]}, "ordinal", None),
        (GRADES, {"terms": [{"loss": "cross_entropy"}, {"loss": "supcon"}]}, "text_classification", None),
    ],
)
def test_the_task_follows_from_the_cells_and_from_what_the_loss_is_for(
    cells: list[str], loss: Any, task: str, chosen: str | None
) -> None:
    dataset = Dataset(cells)
    resolved = dataset.resolve(loss=loss)
    assert resolved.spec.task is not None
    assert resolved.spec.task.type == resolved.state.type == task
    assert isinstance(resolved.spec.loss, Composition) or resolved.spec.loss is not None
    if chosen is not None:
        assert resolved.spec.loss.type == chosen
    assert_stays(dataset, resolved)


@pytest.mark.parametrize(
    ("cells", "task", "chosen", "reading"),
    [
        (LABELS[:60], {"type": "text_classification"}, "cross_entropy", "softmax"),
        (GRADES, {"type": "ordinal"}, "cross_entropy", "softmax"),
        (LABELS, {"type": "ordinal", "labels": ["negative", "neutral", "positive"]}, "cross_entropy", "softmax"),
        (GRADES, {"type": "regression"}, "mse", "value"),
        (LISTS, {"type": "multi_label"}, "bce", "sigmoid"),
        (DISTRIBUTIONS, {"type": "ordinal", "labels": ["low", "mid", "high"]}, "soft_cross_entropy", "softmax"),
    ],
)
def test_a_task_that_was_given_has_its_own_default_loss(cells: list[str], task: Any, chosen: str, reading: str) -> None:
    dataset = Dataset(cells)
    resolved = dataset.resolve(task=task)
    assert resolved.spec.loss is not None
    assert not isinstance(resolved.spec.loss, Composition)
    assert (resolved.spec.loss.type, resolved.state.reading) == (chosen, reading)
    assert build_task(resolved.state).encode([cells[0]]).shape[0] == 1
    assert_stays(dataset, resolved)


def test_levels_that_are_numbers_are_sorted_as_numbers_and_others_must_be_given_in_order() -> None:
    grades = [str(i % 12) for i in range(120)]
    resolved = Dataset(grades).resolve(task={"type": "ordinal"})
    assert resolved.state.labels == [str(i) for i in range(12)]
    problem = Dataset().refuse(loss="corn", task={"type": "ordinal"})
    assert (problem.pointer, problem.code) == ("/task/labels", "missing_order")
    assert "set task.labels to the labels in order" in problem.message
    assert "'negative', 'neutral', 'positive'" in problem.message


def test_labels_of_lists_are_counted_by_row_and_of_distributions_by_the_likeliest() -> None:
    lists = Dataset(LISTS).resolve(split={"validation": 0, "test": 0})
    assert lists.train_counts == {"art": 33, "news": 17, "sport": 34}
    assert lists.train_rows == 100  # some have two labels, some none
    soft = Dataset(DISTRIBUTIONS).resolve(split={"validation": 0, "test": 0})
    assert soft.state.is_soft
    assert soft.train_counts == {"high": 33, "low": 67, "mid": 0}
    assert any("'mid' has no training rows" in warning for warning in soft.warnings)


def test_every_part_has_its_share_of_each_kind_of_rows() -> None:
    for cells in (LISTS, DISTRIBUTIONS, NUMBERS, GRADES):
        parts = Dataset(cells).resolve().parts
        assert [int((parts == part).sum()) for part in Part] == [80, 10, 10]
    numbers = np.array(NUMBERS, float)
    parts = Dataset(NUMBERS).resolve().parts
    for fifth in range(5):
        assert (parts[numbers.argsort()[20 * fifth : 20 * fifth + 20]] == Part.TEST).sum() == 2


@pytest.mark.parametrize(
    ("cells", "task", "code", "said"),
    [
        (LABELS, "regression", "not_a_number", "row 1 of column 'label' holds 'positive'"),
        ([*NUMBERS, "n/a"], "regression", "not_a_number", "row 101"),
        (LABELS, "multi_label", "not_a_list", '["positive"]'),
        (LISTS, "text_classification", "several_labels", "17% of the rows have two or more labels"),
        (LISTS, "ordinal", "several_labels", "Use task multi_label"),
    ],
)
def test_a_task_that_the_cells_do_not_fit_is_refused_with_the_way_out(
    cells: list[str], task: str, code: str, said: str
) -> None:
    problem = Dataset(cells).refuse(task={"type": task})
    assert (problem.pointer, problem.code) == ("/task/type", code)
    assert said in problem.message


def test_a_row_that_is_no_distribution_is_refused_by_its_number() -> None:
    problem = Dataset([*DISTRIBUTIONS, '{"low": -1}']).refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "not_a_distribution")
    assert "row 101" in problem.message


@pytest.mark.parametrize("task", [None, "text_classification", "ordinal"])
@pytest.mark.parametrize("cell", ["", "{}", "high", "[]", '{"low": NaN}', '{"low": 0}', '{"low": "much"}'])
def test_one_cell_among_many_that_is_no_distribution_is_named(cell: str, task: str | None) -> None:
    cells = [*DISTRIBUTIONS, cell, *DISTRIBUTIONS]
    problem = Dataset(cells).refuse(task=task and {"type": task})
    assert (problem.pointer, problem.code) == ("/dataset", "not_a_distribution")
    assert "row 101 of column 'label'" in problem.message


# ------------------------------------------------------------------------------------------------------ standardisation


def test_numbers_are_standardised_by_the_training_rows_alone() -> None:
    numbers = [str(i) for i in range(100)]
    split = ["train"] * 50 + ["validation"] * 25 + ["test"] * 25
    resolved = Dataset(numbers, split=split).resolve(task={"type": "regression"})
    assert resolved.spec.task == Regression(standardize=True)
    assert (resolved.state.shift, resolved.state.scale) == pytest.approx((24.5, np.arange(50).std()))
    plain = Dataset(numbers, split=split).resolve(task={"type": "regression", "standardize": False})
    assert (plain.state.shift, plain.state.scale) == (0, 1)
    for one in (resolved, plain):
        assert_stays(Dataset(numbers, split=split), one)


def test_a_target_that_never_changes_is_not_divided_by_zero() -> None:
    resolved = Dataset(["7"] * 40).resolve(task={"type": "regression"})
    assert (resolved.state.shift, resolved.state.scale) == (7, 1)


def test_counts_are_not_standardised() -> None:
    dataset = Dataset(COUNTS)
    resolved = dataset.resolve(loss="poisson_nll")
    assert (resolved.state.reading, resolved.state.shift, resolved.state.scale) == ("log_rate", 0, 1)
    assert resolved.spec.task == Regression(standardize=False)
    assert_stays(dataset, resolved)
    problem = dataset.refuse(loss="poisson_nll", task={"type": "regression", "standardize": True})
    assert problem.pointer == "/task/standardize"
    assert "counts" in problem.message


def test_a_negative_count_is_refused() -> None:
    problem = Dataset([*COUNTS, "-2"]).refuse(loss="poisson_nll", split={"validation": 0, "test": 0})
    assert (problem.pointer, problem.code) == ("/loss/type", "negative_count")
    assert "-2" in problem.message


def test_quantiles_are_kept_with_the_task() -> None:
    resolved = Dataset(NUMBERS).resolve(loss={"type": "pinball", "quantiles": [0.25, 0.5]})
    assert resolved.state.quantiles == [0.25, 0.5]
    assert build_task(resolved.state).width == 2


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    ("cells", "loss", "calibrate", "thresholds"),
    [
        (LABELS, "cross_entropy", "temperature", None),
        (LABELS[:60], "bce", "temperature", None),
        (LABELS, "hinge", None, None),
        (LABELS[:60], "binary_hinge", None, None),
        (LISTS, "bce", "temperature", "f1"),
        (LISTS, "zlpr", None, "f1"),
        (GRADES, "corn", "temperature", None),
        (GRADES, "mae", None, None),
        (NUMBERS, "mse", None, None),
    ],
)
def test_calibration_and_thresholds_are_filled_in_by_how_outputs_are_read(
    cells: list[str], loss: str, calibrate: str | None, thresholds: str | None
) -> None:
    dataset = Dataset(cells)
    resolved = dataset.resolve(loss=loss)
    assert (resolved.spec.evaluation.calibrate, resolved.spec.evaluation.thresholds) == (calibrate, thresholds)
    assert_stays(dataset, resolved)


@pytest.mark.parametrize(
    ("cells", "loss"), [(LABELS, "hinge"), (LABELS[:60], "binary_hinge"), (LISTS, "zlpr"), (GRADES, "mse")]
)
def test_a_temperature_has_nothing_to_act_on_where_scores_are_no_probabilities(cells: list[str], loss: str) -> None:
    dataset = Dataset(cells)
    problem = dataset.refuse(loss=loss, evaluation={"calibrate": "temperature"})
    assert problem.pointer == "/evaluation/calibrate"
    assert "`evaluation.calibrate` = `platt`" in problem.message
    for fine in ("platt", None):
        assert dataset.resolve(loss=loss, evaluation={"calibrate": fine}).spec.evaluation.calibrate == fine


@pytest.mark.parametrize(
    ("cells", "field", "asked", "said"),
    [
        (NUMBERS, "calibrate", "platt", "'platt', and a regression gives numbers"),
        (NUMBERS, "calibrate", "temperature", "'temperature', and a regression gives numbers"),
        (NUMBERS, "thresholds", "f1", "task 'regression' has none"),
        (LABELS, "thresholds", "f1", "only multi_label asks of each label"),
    ],
)
def test_what_is_asked_for_and_does_not_apply_is_refused_not_dropped(
    cells: list[str], field: str, asked: str, said: str
) -> None:
    dataset = Dataset(cells)
    problem = dataset.refuse(evaluation={field: asked})
    assert (problem.pointer, problem.code) == (f"/evaluation/{field}", "invalid_value")
    assert said in problem.message
    assert "set it to null" in problem.message
    for fine in ({}, {field: None}):
        resolved = dataset.resolve(evaluation=fine)
        assert getattr(resolved.spec.evaluation, field) is None
        assert_stays(dataset, resolved)


def test_thresholds_may_be_left_at_one_half() -> None:
    assert Dataset(LISTS).resolve(evaluation={"thresholds": None}).spec.evaluation.thresholds is None


# ------------------------------------------------------------------------------------------------------- early stopping


STOPPING: dict[Any, tuple[list[str], Any]] = {
    "text_classification": (LABELS, "cross_entropy"),
    "multi_label": (LISTS, "bce"),
    "regression": (NUMBERS, "mse"),
    "ordinal": (GRADES, "corn"),
}


@pytest.mark.parametrize("task", STOPPING)
def test_early_stopping_watches_a_metric_of_its_task(task: Any) -> None:
    cells, loss = STOPPING[task]
    dataset = Dataset(cells)
    resolved = dataset.resolve(loss=loss, training={"early_stopping": {}})
    assert resolved.state.type == task
    assert resolved.spec.training.early_stopping == EarlyStopping(metric=DEFAULT_METRIC[task], patience=2)
    assert_stays(dataset, resolved)
    for metric in METRICS[task]:
        dataset.resolve(loss=loss, training={"early_stopping": {"metric": metric}})
    near = DEFAULT_METRIC[task] + "x"
    problem = dataset.refuse(loss=loss, training={"early_stopping": {"metric": near}})
    assert (problem.pointer, problem.code) == ("/training/early_stopping/metric", "unknown_metric")
    assert f"Did you mean '{DEFAULT_METRIC[task]}'?" in problem.message


@pytest.mark.parametrize("task", STOPPING)
def test_every_metric_that_may_be_watched_is_measured(task: Any) -> None:
    cells, loss = STOPPING[task]
    built = build_task(Dataset(cells).resolve(loss=loss).state)
    targets = built.encode(cells)
    outputs = np.random.default_rng(0).normal(size=(len(cells), built.width))
    assert set(METRICS[task]) <= built.evaluate(outputs, targets).keys()


@pytest.mark.parametrize("metric", ["loss", "ece", "brier"])
def test_what_only_probabilities_have_cannot_be_watched_without_them(metric: str) -> None:
    for cells, loss in ((LABELS, "hinge"), (GRADES, "mse")):
        problem = Dataset(cells).refuse(loss=loss, training={"early_stopping": {"metric": metric}})
        assert (problem.pointer, problem.code) == ("/training/early_stopping/metric", "unknown_metric")
        assert metric not in problem.message.split("There are:")[1]
