"""What is refused of a loss before it runs, and what is only warned of: where, why, and the way out."""

from typing import Any

import pytest

from ml.resolve import Resolved
from ml.specs.losses.base import LossSpec, TaskType
from ml.specs.losses.table import LOSS_SPECS
from tests.ml.datasets import COUNTS, DISTRIBUTIONS, GRADES, GROUPS, LABELS, LISTS, NUMBERS, Dataset, base

PAIR = LABELS[:60]
CELLS: dict[TaskType, list[str]] = {
    "text_classification": LABELS,
    "multi_label": LISTS,
    "regression": COUNTS,
    "ordinal": GRADES,
}
TASKS: dict[TaskType, dict[str, Any]] = {task: {"type": task} for task in CELLS}


def example(loss: str) -> dict[str, Any]:
    return LOSS_SPECS[loss].example()


def cells_of(spec: type[LossSpec], task: TaskType) -> list[str]:
    """Cells that the loss can learn from: of two labels where it puts them on one output."""
    return PAIR if spec.readings.get(task) in ("sigmoid_pair", "score_pair") else CELLS[task]


def composed(*losses: Any, **others: Any) -> dict[str, Any]:
    terms = [{"id": f"term-{i}", "loss": loss} for i, loss in enumerate(losses)]
    return {"terms": terms, **others}


# -------------------------------------------------------------------------------------------------- a loss and its task


@pytest.mark.parametrize("task", CELLS)
@pytest.mark.parametrize("loss", sorted(LOSS_SPECS))
def test_a_loss_is_accepted_for_its_tasks_and_refused_for_the_others_by_name(loss: str, task: TaskType) -> None:
    spec = LOSS_SPECS[loss]
    cells, body = cells_of(spec, task), dict(example(loss))
    asked: Any = body
    if spec.auxiliary_for:
        main = {"multi_label": "bce", "regression": "mse"}.get(task, "cross_entropy")
        asked = {"terms": [{"loss": main}, {"loss": body}]}
    dataset = Dataset(cells, group=GROUPS[: len(cells)])
    if task in spec.tasks():
        resolved = dataset.resolve(loss=asked, task=TASKS[task], training={"dropout": 0.1})
        assert resolved.state.type == task
        return
    problem = dataset.refuse(loss=asked, task=TASKS[task], training={"dropout": 0.1})
    assert problem.pointer == ("/loss/terms/1/loss/type" if spec.auxiliary_for else "/loss/type")
    assert problem.code == "loss_does_not_fit"
    assert f"'{loss}' needs" in problem.message
    assert f"task '{task}' has" in problem.message
    assert " Use " in problem.message
    for home in spec.tasks():
        assert f"'{home}'" in problem.message


def test_a_loss_for_numbers_says_what_the_task_has_instead() -> None:
    problem = Dataset().refuse(loss="mse", task={"type": "text_classification"})
    assert problem.message.startswith("'mse' needs numbers, but task 'text_classification' has 3 class labels.")
    assert "Use cross_entropy" in problem.message
    assert "set task to 'regression' or 'ordinal'" in problem.message


@pytest.mark.parametrize("loss", ["bce", "sigmoid_focal", "binary_hinge"])
def test_a_loss_that_puts_two_labels_on_one_output_needs_just_two(loss: str) -> None:
    problem = Dataset().refuse(loss=loss)
    assert (problem.pointer, problem.code) == ("/loss/type", "loss_does_not_fit")
    assert "there are 3 labels" in problem.message
    assert f"{loss}," not in problem.message
    resolved = Dataset(PAIR).resolve(loss=loss)
    assert resolved.state.reading in ("sigmoid_pair", "score_pair")


def test_rows_of_several_labels_need_multi_label() -> None:
    problem = Dataset(LISTS).refuse(loss="cross_entropy", task={"type": "text_classification"})
    assert (problem.pointer, problem.code) == ("/task/type", "several_labels")
    assert "17% of the rows have two or more labels" in problem.message
    assert "bce" in problem.message


@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "logit_adjusted", "hinge"])
def test_distributions_over_labels_need_a_loss_that_takes_them(loss: str) -> None:
    problem = Dataset(DISTRIBUTIONS).refuse(loss=loss)
    assert (problem.pointer, problem.code) == ("/loss/type", "loss_does_not_fit")
    assert "soft_cross_entropy or kl" in problem.message


def test_terms_beside_a_loss_of_distributions() -> None:
    dataset = Dataset(DISTRIBUTIONS)
    resolved = dataset.resolve(loss=composed("kl", "r_drop", "entropy_min"), training={"dropout": 0.1})
    assert resolved.state.is_soft
    problem = dataset.refuse(loss=composed("kl", "supcon"))
    assert problem.pointer == "/loss/terms/1/loss/type"
    assert "'supcon' needs one label a row" in problem.message


def test_corn_needs_levels_in_order() -> None:
    problem = Dataset().refuse(loss="corn", task={"type": "ordinal"})
    assert problem.pointer == "/task/labels"
    order = ["negative", "neutral", "positive"]
    resolved = Dataset().resolve(loss="corn", task={"type": "ordinal", "labels": order})
    assert (resolved.state.reading, resolved.state.labels) == ("conditional", order)


# ----------------------------------------------------------------------------------------------------- weights by label


def test_class_weights_that_misspell_a_label_are_told_both_sides() -> None:
    weights = {"negative": 1, "nuetral": 2, "positive": 1}
    problem = Dataset().refuse(loss={"type": "cross_entropy", "class_weights": weights})
    assert (problem.pointer, problem.code) == ("/loss/class_weights", "unknown_label")
    assert "lacks 'neutral'" in problem.message
    assert "has unknown 'nuetral'" in problem.message
    assert problem.message.endswith("labels are negative, neutral, positive. Did you mean 'neutral'?")


def test_a_weight_in_a_term_is_pointed_at_there() -> None:
    weighted = {"type": "cross_entropy", "class_weights": {"negative": 1, "positive": 1}}
    problem = Dataset().refuse(loss=composed("focal", weighted))
    assert problem.pointer == "/loss/terms/1/loss/class_weights"


@pytest.mark.parametrize(
    ("cells", "loss", "field"), [(LABELS, "focal", "alpha"), (LISTS, "bce", "pos_weight"), (PAIR, "bce", "pos_weight")]
)
def test_weights_by_label_name_every_label(cells: list[str], loss: str, field: str) -> None:
    labels = Dataset(cells).resolve().state.labels
    problem = Dataset(cells).refuse(loss={"type": loss, field: dict.fromkeys(labels[:-1], 2)})
    assert problem.pointer == f"/loss/{field}"
    assert f"lacks '{labels[-1]}'" in problem.message
    assert "unknown" not in problem.message
    Dataset(cells).resolve(loss={"type": loss, field: {label: i + 1 for i, label in enumerate(labels)}})


WITHOUT_NEUTRAL = ["train" if label != "neutral" else "test" for label in LABELS]


@pytest.mark.parametrize("weights", ["balanced", {"scheme": "effective_number"}])
def test_weights_by_frequency_need_a_training_row_of_every_label(weights: Any) -> None:
    dataset = Dataset(split=WITHOUT_NEUTRAL)
    problem = dataset.refuse(loss={"type": "cross_entropy", "class_weights": weights})
    assert (problem.pointer, problem.code) == ("/loss/class_weights", "label_without_rows")
    assert "'neutral' has 0 training rows" in problem.message
    assert "divide by zero" in problem.message
    by_hand = {"negative": 1, "neutral": 1, "positive": 1}
    resolved = dataset.resolve(loss={"type": "cross_entropy", "class_weights": by_hand})
    assert resolved.train_counts["neutral"] == 0
    assert any("'neutral' has no training rows" in warning for warning in resolved.warnings)


@pytest.mark.parametrize("loss", ["logit_adjusted", "ldam"])
def test_a_loss_that_works_from_frequencies_needs_a_training_row_of_every_label(loss: str) -> None:
    problem = Dataset(split=WITHOUT_NEUTRAL).refuse(loss=loss)
    assert (problem.pointer, problem.code) == ("/loss/type", "label_without_rows")
    assert "'neutral' has 0 training rows" in problem.message


# -------------------------------------------------------------------------------------------------- what a loss needs


@pytest.mark.parametrize("loss", ["group_dro", "v_rex"])
def test_a_loss_that_compares_groups_needs_their_column(loss: str) -> None:
    problem = Dataset(user=GROUPS).refuse(loss=loss)
    assert (problem.pointer, problem.code) == ("/loss", "missing_groups")
    assert 'columns={"group": "…"}' in problem.message
    assert "text, label, user" in problem.message
    assert Dataset(group=GROUPS).resolve(loss=loss).groups == tuple(sorted(set(GROUPS)))


def test_compiled_code_cannot_move_word_embeddings() -> None:
    loss = {"terms": [{"loss": "cross_entropy"}, {"loss": "fgm"}]}
    problem = Dataset().refuse(loss=loss, training={"compile": True})
    assert (problem.pointer, "'fgm' moves" in problem.message) == ("/training/compile", True)


@pytest.mark.parametrize("term", ["supcon", "fgm"])
def test_a_term_that_trains_the_encoder_has_nothing_to_train_in_a_frozen_one(term: str) -> None:
    loss = composed("cross_entropy", term)
    problem = Dataset().refuse(loss=loss, tuning="frozen")
    assert (problem.pointer, problem.code) == ("/loss/terms/1/loss", "nothing_to_train")
    assert "Use tuning 'full'" in problem.message
    Dataset().resolve(loss=loss)


@pytest.mark.parametrize(
    ("tuning", "dropout", "is_fine"),
    [
        *[("full", 0.0, False), ("full", None, True), ("full", 0.1, True), ("frozen", None, False)],
        *[("frozen", 0.1, True), ("lora", 0.0, False), ({"type": "lora", "dropout": 0.1}, 0.0, True)],
    ],
)
def test_two_passes_need_dropout_to_differ(tuning: Any, dropout: float | None, is_fine: bool) -> None:
    body: dict[str, Any] = {
        "loss": composed("cross_entropy", "r_drop"),
        "tuning": tuning,
        "training": {"dropout": dropout},
    }
    if is_fine:
        Dataset().resolve(**body)
    else:
        problem = Dataset().refuse(**body)
        assert (problem.pointer, problem.code) == ("/loss/terms/1/loss", "needs_dropout")
        assert "Set training.dropout" in problem.message


@pytest.mark.parametrize(("its_own", "is_fine"), [(0.0, False), (0.1, True), (None, True)])
def test_the_dropout_of_the_base_counts_where_the_spec_leaves_it(its_own: float | None, is_fine: bool) -> None:
    loss = composed("cross_entropy", "r_drop")
    if is_fine:
        Dataset().resolve(base(dropout=its_own), loss=loss)
    else:
        problem = Dataset().refuse(base(dropout=its_own), loss=loss)
        assert (problem.pointer, problem.code) == ("/loss/terms/1/loss", "needs_dropout")
    Dataset().resolve(base(dropout=its_own), loss=loss, training={"dropout": 0.1})
    assert Dataset().refuse(base(), loss=loss, training={"dropout": 0}).code == "needs_dropout"


def test_hinge_gives_no_probabilities_to_divide_by_a_temperature() -> None:
    problem = Dataset().refuse(loss="hinge", evaluation={"calibrate": "temperature"})
    assert problem.pointer == "/evaluation/calibrate"
    assert "scores, not probabilities" in problem.message
    assert Dataset().resolve(loss="hinge", evaluation={"calibrate": "platt"}).spec.evaluation.calibrate == "platt"


# ------------------------------------------------------------------------------------------------------- terms together


@pytest.mark.parametrize("loss", [name for name, spec in sorted(LOSS_SPECS.items()) if spec.auxiliary_for])
def test_an_auxiliary_term_needs_a_task_loss_beside_it(loss: str) -> None:
    problem = Dataset().refuse(loss=example(loss))
    assert (problem.pointer, problem.code) == ("/loss", "no_task_loss")
    assert f"'{loss}' is an auxiliary term; add a task loss" in problem.message
    problem = Dataset().refuse(loss=composed(example(loss)))
    assert problem.pointer == "/loss/terms/0/loss"


@pytest.mark.parametrize(
    ("cells", "task", "losses"),
    [
        (GRADES, "ordinal", ("cross_entropy", "coral")),
        (GRADES, "ordinal", ("coral", "cumulative_link")),
        (GRADES, "ordinal", ("coral", "corn")),
        (GRADES, "ordinal", ("mse", "emd2")),
        (PAIR, "text_classification", ("cross_entropy", "bce")),
        (LABELS, "text_classification", ("cross_entropy", "hinge")),
        (LABELS, "text_classification", ("cross_entropy", "arcface")),
        (LABELS, "text_classification", ("arcface", {"type": "cosface", "scale": 16})),
        (LISTS, "multi_label", ("bce", "zlpr")),
        (NUMBERS, "regression", ("mse", "gaussian_nll")),
        (NUMBERS, "regression", ("pinball", {"type": "pinball", "quantiles": [0.5]})),
    ],
)
def test_losses_that_read_the_outputs_differently_do_not_share_a_head(
    cells: list[str], task: str, losses: tuple[Any, Any]
) -> None:
    for one in (losses, losses[::-1]):
        problem = Dataset(cells).refuse(loss=composed(*one), task={"type": task})
        assert (problem.pointer, problem.code) == ("/loss/terms/1/loss/type", "terms_do_not_fit")
        assert "/loss/terms/0/loss" in problem.message


@pytest.mark.parametrize(
    ("cells", "task", "losses"),
    [
        (LABELS, "text_classification", ("cross_entropy", "focal", "gce")),
        (LABELS, "text_classification", ("arcface", "cosface")),
        (GRADES, "ordinal", ("cross_entropy", "sord", "emd2")),
        (GRADES, "ordinal", ("mse", "huber")),
        (LISTS, "multi_label", ("bce", "asl", "db_loss")),
        (NUMBERS, "regression", ("mse", "mae", "huber")),
        (PAIR, "text_classification", ("bce", "sigmoid_focal")),
    ],
)
def test_losses_that_read_the_outputs_alike_go_together(cells: list[str], task: str, losses: tuple[str, ...]) -> None:
    resolved = Dataset(cells).resolve(loss=composed(*losses, combine="normalized"), task={"type": task})
    assert resolved.state.type == task


@pytest.mark.parametrize("term", ["r_drop", "entropy_min", "kd"])
def test_a_term_of_distributions_cannot_stand_beside_one_number(term: str) -> None:
    problem = Dataset(GRADES).refuse(
        loss=composed("mse", example(term)), task={"type": "ordinal"}, training={"dropout": 0.1}
    )
    assert (problem.pointer, problem.code) == ("/loss/terms/1/loss/type", "terms_do_not_fit")
    assert f"'{term}' compares distributions" in problem.message


@pytest.mark.parametrize(("term", "other"), [("fgm", {"epsilon": 0.5}), ("kd", {"teacher": "mdl_2"})])
def test_a_term_that_a_step_can_serve_only_once_stands_once(term: str, other: dict[str, Any]) -> None:
    problem = Dataset().refuse(loss=composed(example(term), "cross_entropy", {**example(term), **other}))
    assert (problem.pointer, problem.code) == ("/loss/terms/2/loss/type", "repeated_term")
    assert "/loss/terms/0/loss" in problem.message


# ------------------------------------------------------------------------------------------------------------- warnings


def warnings_of(resolved: Resolved) -> str:
    return " | ".join(resolved.warnings)


def test_a_focal_alpha_that_is_the_same_everywhere_is_warned_of() -> None:
    alpha = dict.fromkeys(("negative", "neutral", "positive"), 0.25)
    (warning,) = Dataset().resolve(loss={"type": "focal", "alpha": alpha}).warnings
    assert "only rescales the learning rate" in warning
    assert Dataset().resolve(loss={"type": "focal", "alpha": {**alpha, "neutral": 1}}).warnings == ()


@pytest.mark.parametrize("loss", ["logit_adjusted"])
def test_correcting_imbalance_twice_is_warned_of(loss: str) -> None:
    weighted = {"type": "cross_entropy", "class_weights": "balanced"}
    assert "use one" in warnings_of(Dataset().resolve(loss=composed(loss, weighted)))
    assert Dataset().resolve(loss=composed(loss, "cross_entropy")).warnings == ()


def test_rows_that_will_rarely_meet_their_own_label_are_warned_of() -> None:
    many = [f"intent {i % 77}" for i in range(770)]
    loss = composed("cross_entropy", "supcon")
    told = warnings_of(Dataset(many).resolve(loss=loss, training={"batch_size": 8}))
    assert "batch 8 over 77 labels leaves about 91% of rows without a positive" in told
    assert Dataset().resolve(loss=loss, training={"batch_size": 32}).warnings == ()


def test_weights_that_come_after_the_last_epoch_are_warned_of() -> None:
    def late(epoch: int) -> str:
        return warnings_of(Dataset().resolve(loss={"type": "ldam", "deferred_epoch": epoch}, training={"epochs": 4}))

    assert "never takes effect" in late(4)
    assert late(3) == ""
