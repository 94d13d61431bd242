"""Augmentation that does not fit the tuning, the base model or the loss is refused, and says what does."""

from typing import Any

import pytest
from pydantic import ValidationError

from ml.specs.errors import SpecError, explain_validation
from ml.specs.job import JobSpec
from ml.specs.losses.table import LOSS_SPECS
from tests.ml.datasets import GROUPS, LABELS, Dataset, base

WITH_GROUPS = Dataset([label[:3] for label in LABELS], group=GROUPS)


def augmented(*ways: Any, **spec: Any) -> dict[str, Any]:
    compiled = {"compile": spec.pop("compile")} if "compile" in spec else {}
    return {"training": {"augmentation": list(ways), **compiled}, **spec}


def refused_at(*ways: Any) -> tuple[str, str]:
    """Where a spec is refused without a dataset, and why."""
    body = {"dataset": "ds_1", **augmented(*ways)}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    problem = explain_validation(caught.value, body).problems[0]
    return problem.pointer, problem.message


def test_rows_stay_as_they_are_unless_told_otherwise() -> None:
    assert Dataset().resolve().spec.training.augmentation == []


def test_bare_names_are_spelled_out_and_keep_their_order() -> None:
    resolved = Dataset().resolve(**augmented("eda", "mask", "mixup"))
    assert [one.model_dump() for one in resolved.spec.training.augmentation] == [
        {"type": "eda", "alpha": 0.1, "operations": ["swap", "deletion", "insertion"]},
        {"type": "mask", "probability": 0.1},
        {"type": "mixup", "alpha": 0.2},
    ]
    assert Dataset().resolve(**resolved.spec.model_dump()).spec == resolved.spec


@pytest.mark.parametrize(
    ("ways", "pointer", "said"),
    [
        (["mask", {"type": "mask", "probability": 0.2}], "/training/augmentation", "mask twice"),
        (["synonyms"], "/training/augmentation/0", "There are: mask, eda, mixup"),
        ([{"type": "mask", "probability": 1}], "/training/augmentation/0/probability", "must be less than 1"),
        ([{"type": "eda", "operations": []}], "/training/augmentation/0/operations", "1"),
        ([{"type": "eda", "operations": ["swap", "swap"]}], "/training/augmentation/0", "named twice"),
        ([{"type": "eda", "operations": ["replace"]}], "/training/augmentation/0/operations/0", "Allowed: swap"),
    ],
)
def test_what_no_augmentation_has_is_refused(ways: list[Any], pointer: str, said: str) -> None:
    found, message = refused_at(*ways)
    assert found.removesuffix("/type") == pointer
    assert said in message


@pytest.mark.parametrize("way", ["mask", "eda", "mixup"])
def test_texts_that_are_encoded_once_cannot_change(way: str) -> None:
    problem = Dataset().refuse(**augmented(way, tuning="frozen"))
    assert (problem.pointer, problem.code) == ("/training/augmentation", "augmentation_does_not_fit")
    assert "another tuning" in problem.message
    Dataset().resolve(**augmented(way, tuning="top_layers"))


def test_compiled_code_wants_few_lengths() -> None:
    problem = Dataset().refuse(**augmented("eda", compile=True))
    assert (problem.pointer, problem.code) == ("/training/compile", "augmentation_does_not_fit")


def test_masking_needs_a_mask() -> None:
    problem = Dataset().refuse(base(mask_id=None), **augmented("eda", "mask"))
    assert (problem.pointer, problem.code) == ("/training/augmentation/1", "no_mask_token")
    Dataset().resolve(base(mask_id=None), **augmented("eda", "mixup"))


@pytest.mark.parametrize("loss", ["group_dro", "v_rex", "arcface", "cosface", "ldam"])
def test_a_loss_that_a_mixture_has_no_meaning_for_is_refused(loss: str) -> None:
    problem = WITH_GROUPS.refuse(**augmented("mask", "mixup", loss=loss))
    assert (problem.pointer, problem.code) == ("/training/augmentation/1", "augmentation_does_not_fit")
    assert f"'{loss}'" in problem.message
    WITH_GROUPS.resolve(**augmented("mask", "eda", loss=loss))


@pytest.mark.parametrize("term", ["supcon", "fgm", "entropy_min", {"type": "kd", "teacher": "mdl_1"}])
def test_a_term_that_a_mixture_has_no_meaning_for_is_refused(term: Any) -> None:
    loss = {"terms": [{"loss": "focal"}, {"loss": term}]}
    problem = Dataset().refuse(**augmented("mixup", loss=loss))
    assert problem.pointer == "/training/augmentation/0"
    assert f"'{term if isinstance(term, str) else 'kd'}'" in problem.message
    Dataset().resolve(**augmented("mask", "eda", loss=loss))


def test_every_other_loss_of_one_label_takes_mixtures() -> None:
    dataset = Dataset(["yes", "no"] * 50, group=GROUPS)
    refused = set()
    for name, spec in LOSS_SPECS.items():
        if "text_classification" not in spec.readings:
            continue
        try:
            dataset.resolve(**augmented("mixup", loss=spec.example()))
        except SpecError as error:
            assert "'mixup'" in str(error)
            refused.add(name)
    assert refused == {"arcface", "cosface", "ldam", "group_dro", "v_rex"}
