"""A spec meets a dataset: what is filled in, and what cannot work."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ml.data.splits import Part
from ml.resolve import Resolved, needed_headers, resolve
from ml.specs.errors import Problem, SpecError
from ml.specs.facts import BaseFacts, Columns, DatasetFacts
from ml.specs.job import AdamW, JobSpec, Sgd
from ml.specs.losses import CrossEntropySpec

LABELS = ["positive"] * 30 + ["negative"] * 30 + ["neutral"] * 40


def base(**changes: Any) -> BaseFacts:
    """A small encoder."""
    whole = {"name": "small", "model_type": "bert", "hidden_size": 384, "layers": 6, "max_length": 512}
    return BaseFacts.model_validate({**whole, "vocabulary": 100, "parameters": 1000, **changes})


class Dataset:
    """Rows as `resolve` sees them: facts, and the cells of some columns."""

    def __init__(self, labels: Sequence[str | None] | None = LABELS, **others: Sequence[str | None]) -> None:
        self.cells = {**({"label": labels} if labels else {}), **others}
        rows = len(next(iter(self.cells.values())))
        counts = Counter(label for label in labels or [] if label)
        missing = [row + 1 for row, label in enumerate(labels or []) if label is None]
        self.facts = DatasetFacts(
            rows=rows,
            headers=["text", *self.cells],
            columns=Columns(
                text="text", label="label" if labels else None, split="split" if "split" in others else None
            ),
            recognised=["text"],
            empty_texts=0,
            first_empty_text=None,
            missing_labels=len(missing),
            first_missing_label=missing[0] if missing else None,
            labels=dict(counts),
            distinct_labels=len(counts),
            splits={},
            text_characters=1000,
        )

    def resolve(self, on: BaseFacts | None = None, **body: Any) -> Resolved:
        spec = JobSpec.model_validate({"dataset": "ds_1", **body})
        cells = {header: self.cells[header] for header in needed_headers(spec, self.facts)}
        return resolve(spec, self.facts, on or base(), cells)

    def refuse(self, on: BaseFacts | None = None, **body: Any) -> Problem:
        with pytest.raises(SpecError) as caught:
            self.resolve(on, **body)
        (problem,) = caught.value.problems
        return problem


def test_what_was_left_open_is_filled_in() -> None:
    resolved = Dataset().resolve()
    assert resolved.spec.loss == CrossEntropySpec(type="cross_entropy")
    assert resolved.spec.task is not None
    assert resolved.spec.task.labels == ["negative", "neutral", "positive"]
    assert resolved.labels == ("negative", "neutral", "positive")
    assert resolved.spec.training.optimizer.learning_rate == 1e-4
    assert resolved.warnings == ()


def test_train_counts_are_those_of_the_training_part() -> None:
    resolved = Dataset().resolve()
    training = Counter(np.array(LABELS)[resolved.parts == Part.TRAIN].tolist())
    assert resolved.train_counts == training
    assert list(resolved.train_counts) == list(resolved.labels)
    assert sum(resolved.train_counts.values()) == 80


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
    again = dataset.resolve(**once.spec.model_dump())
    assert again.spec == once.spec
    assert again.labels == once.labels
    assert again.train_counts == once.train_counts
    assert (again.parts == once.parts).all()


def test_a_dataset_whose_group_column_was_named_at_upload_is_split_by_it() -> None:
    dataset = Dataset(user=[f"user {i % 25}" for i in range(100)])
    dataset.facts = dataset.facts.model_copy(
        update={"columns": dataset.facts.columns.model_copy(update={"group": "user"})}
    )
    resolved = dataset.resolve()
    assert resolved.spec.split.group_column == "user"
    for i in range(25):
        assert len(set(resolved.parts[i::25].tolist())) == 1


@pytest.mark.parametrize(
    ("hidden_size", "tuning", "expected"),
    [(384, "full", 1e-4), (512, "full", 1e-4), (513, "full", 3e-5), (768, "full", 3e-5), (768, "frozen", 1e-2)],
)
def test_the_learning_rate_depends_on_the_width_of_the_encoder(hidden_size: int, tuning: str, expected: float) -> None:
    for kind in ("adamw", "sgd"):
        resolved = Dataset().resolve(
            base(hidden_size=hidden_size), tuning={"type": tuning}, training={"optimizer": {"type": kind}}
        )
        assert resolved.spec.training.optimizer.learning_rate == expected


@pytest.mark.parametrize("optimizer", [AdamW(type="adamw", learning_rate=0.5), Sgd(type="sgd", learning_rate=0.5)])
def test_a_learning_rate_that_was_given_stays(optimizer: AdamW | Sgd) -> None:
    assert Dataset().resolve(training={"optimizer": optimizer.model_dump()}).spec.training.optimizer == optimizer


def test_labels_keep_the_order_that_was_given() -> None:
    order = ["positive", "neutral", "negative"]
    resolved = Dataset().resolve(task={"labels": order})
    assert resolved.labels == tuple(order)
    assert list(resolved.train_counts) == order


def test_labels_that_lack_one_or_name_an_unknown_one_are_refused() -> None:
    problem = Dataset().refuse(task={"labels": ["negative", "positive", "nuetral"]})
    assert problem.pointer == "/task/labels"
    assert "lacks 'neutral'" in problem.message
    assert "has 'nuetral', which no row has" in problem.message


def test_class_weights_that_misspell_a_label_are_told_both_sides() -> None:
    weights = {"negative": 1, "nuetral": 2, "positive": 1}
    problem = Dataset().refuse(loss={"type": "cross_entropy", "class_weights": weights})
    assert problem.pointer == "/loss/class_weights"
    assert "lacks 'neutral'" in problem.message
    assert "has unknown 'nuetral'" in problem.message
    assert problem.message.endswith("labels are negative, neutral, positive. Did you mean 'neutral'?")


def test_alpha_names_every_label() -> None:
    problem = Dataset().refuse(loss={"type": "focal", "alpha": {"negative": 1, "positive": 2}})
    assert problem.pointer == "/loss/alpha"
    assert "lacks 'neutral'" in problem.message
    assert "unknown" not in problem.message


def test_weights_that_are_all_zero_are_refused() -> None:
    weights = dict.fromkeys(("negative", "neutral", "positive"), 0)
    problem = Dataset().refuse(loss={"type": "cross_entropy", "class_weights": weights})
    assert problem.pointer == "/loss/class_weights"
    assert "all 0" in problem.message


@pytest.mark.parametrize("weights", ["balanced", {"scheme": "effective_number"}])
def test_weights_by_frequency_need_a_training_row_of_every_label(weights: Any) -> None:
    split = ["train" if label != "neutral" else "test" for label in LABELS]
    dataset = Dataset(split=split)
    problem = dataset.refuse(loss={"type": "cross_entropy", "class_weights": weights})
    assert problem.pointer == "/loss/class_weights"
    assert "'neutral' has 0 training rows" in problem.message
    by_hand = {"negative": 1, "neutral": 1, "positive": 1}
    resolved = dataset.resolve(loss={"type": "cross_entropy", "class_weights": by_hand})
    assert resolved.train_counts["neutral"] == 0
    assert any("'neutral' has no training rows" in warning for warning in resolved.warnings)


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


def test_free_text_is_not_taken_for_labels() -> None:
    problem = Dataset([f"sentence {i}" for i in range(150)]).refuse()
    assert (problem.pointer, problem.code) == ("/dataset", "too_many_labels")
    assert "150 different labels" in problem.message


def test_many_labels_with_rows_enough_are_fine() -> None:
    assert len(Dataset([f"intent {i % 150}" for i in range(600)]).resolve().labels) == 150


def test_a_focal_alpha_that_is_the_same_everywhere_is_warned_of() -> None:
    alpha = dict.fromkeys(("negative", "neutral", "positive"), 0.25)
    (warning,) = Dataset().resolve(loss={"type": "focal", "alpha": alpha}).warnings
    assert "only rescales the learning rate" in warning
    assert Dataset().resolve(loss={"type": "focal", "alpha": {**alpha, "neutral": 1}}).warnings == ()


def test_dropout_on_a_frozen_encoder_is_warned_of() -> None:
    (warning,) = Dataset().resolve(tuning={"type": "frozen"}, training={"dropout": 0.1}).warnings
    assert "head alone" in warning
    assert Dataset().resolve(training={"dropout": 0.1}).warnings == ()
