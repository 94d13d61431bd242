"""A job spec says what is wrong with it: where, what came, what is allowed."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ml.specs.errors import Problem, explain_validation
from ml.specs.evaluation import Evaluation
from ml.specs.job import JobSpec, Split, Training
from ml.specs.losses.base import EffectiveNumber
from ml.specs.losses.composition import Composition, FixedCombine, WeightSchedule, term_id, terms_of
from ml.specs.losses.single_label import CrossEntropySpec, FocalSpec
from ml.specs.losses.table import LOSS_SPECS
from ml.specs.optimizers import AdamW, Linear, Lion, OneCycle
from ml.specs.tasks import MultiLabel, Ordinal, Regression, TextClassification
from ml.specs.tuning import FullTuning


def accept(**body: Any) -> JobSpec:
    return JobSpec.model_validate({"dataset": "ds_1", **body})


def problems_of(body: Any) -> list[Problem]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    return list(explain_validation(caught.value, body).problems)


def refuse(**body: Any) -> Problem:
    """The one problem of a body."""
    problems = problems_of({"dataset": "ds_1", **body})
    assert len(problems) == 1, problems
    return problems[0]


def test_only_the_dataset_is_required() -> None:
    spec = accept()
    assert (spec.name, spec.model, spec.task, spec.loss, spec.metadata) == ("", "minilm", None, None, {})
    assert spec.split == Split(validation=0.1, test=0.1, stratify=True, group_column=None)
    assert spec.tuning == FullTuning(type="full")
    assert spec.training.optimizer == AdamW(type="adamw", learning_rate=None, weight_decay=0.01)
    assert spec.training.schedule == Linear(type="linear", warmup=0.1)
    stated = {"epochs": 3, "batch_size": 32, "max_length": 128, "max_grad_norm": 1.0, "precision": "auto", "seed": 17}
    assert spec.training.model_dump(include=set(stated)) == stated
    assert spec.training.micro_batch_rows is None
    assert spec.evaluation == Evaluation(calibrate="temperature", thresholds="f1")


def test_a_missing_dataset_is_asked_for() -> None:
    (problem,) = problems_of({"name": "x"})
    assert (problem.pointer, problem.code) == ("/dataset", "missing_field")
    assert "required" in problem.message


@pytest.mark.parametrize("body", [[], "ds_1", 5, None])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    (problem,) = problems_of(body)
    assert problem.pointer == ""


def test_an_unknown_loss_is_told_which_one_is_near() -> None:
    problem = refuse(loss={"type": "focal_los", "gamma": 2})
    assert (problem.pointer, problem.code) == ("/loss/type", "unknown_type")
    assert "unknown loss 'focal_los'" in problem.message
    assert "Did you mean 'focal'?" in problem.message
    assert "cross_entropy" in problem.message


def test_an_unknown_loss_given_as_a_bare_string_is_pointed_at_where_it_stands() -> None:
    problem = refuse(loss="focal_los")
    assert (problem.pointer, problem.code) == ("/loss", "unknown_type")
    assert "Did you mean 'focal'?" in problem.message


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "a\x00b"}, "/name"),
        ({"dataset": "ds_\x00"}, "/dataset"),
        ({"model": "\x00"}, "/model"),
        ({"metadata": {"team": "n\x00lp"}}, "/metadata"),
        ({"metadata": {"te\x00am": "nlp"}}, "/metadata"),
        ({"split": {"group_column": "us\x00er"}}, "/split/group_column"),
        ({"task": {"type": "ordinal", "labels": ["low", "hi\x00gh"]}}, "/task/labels"),
        ({"loss": {"type": "cross_entropy", "class_weights": {"a\x00": 1.0}}}, "/loss/class_weights"),
        ({"loss": {"terms": [{"loss": {"type": "focal", "alpha": {"a\x00": 1.0}}}]}}, "/loss/terms/0/loss/alpha"),
        ({"training": {"early_stopping": {"metric": "f\x001"}}}, "/training/early_stopping/metric"),
    ],
)
def test_a_character_that_a_database_cannot_hold_is_refused_where_it_stands(body: dict[str, Any], pointer: str) -> None:
    problem = refuse(**body)
    assert (problem.pointer, problem.code) == (pointer, "invalid_value")
    assert problem.message == "the character U+0000 cannot be stored. Remove it."


def test_a_loss_without_a_type_is_asked_for_one() -> None:
    problem = refuse(loss={"gamma": 2.0})
    assert problem.pointer == "/loss"
    assert "'type'" in problem.message


@pytest.mark.parametrize(
    ("body", "pointer", "limit", "came"),
    [
        ({"loss": {"type": "focal", "gamma": -1}}, "/loss/gamma", "at least 0", "-1"),
        ({"loss": {"type": "focal", "gamma": 5.5}}, "/loss/gamma", "at most 5", "5.5"),
        ({"loss": {"type": "cross_entropy", "label_smoothing": 1.2}}, "/loss/label_smoothing", "less than 1", "1.2"),
        ({"loss": {"type": "cross_entropy", "label_smoothing": -0.1}}, "/loss/label_smoothing", "at least 0", "-0.1"),
        ({"training": {"epochs": 10**9}}, "/training/epochs", "at most 1000", "1000000000"),
        ({"training": {"epochs": 0}}, "/training/epochs", "at least 1", "0"),
        ({"training": {"batch_size": 10**7}}, "/training/batch_size", "at most 4096", "10000000"),
        ({"training": {"max_length": 3}}, "/training/max_length", "at least 4", "3"),
        ({"training": {"dropout": 1.0}}, "/training/dropout", "less than 1", "1.0"),
        ({"training": {"max_grad_norm": 0}}, "/training/max_grad_norm", "greater than 0", "0"),
        ({"training": {"seed": -1}}, "/training/seed", "at least 0", "-1"),
        (
            {"training": {"optimizer": {"type": "adamw", "learning_rate": 0}}},
            "/training/optimizer/learning_rate",
            "greater than 0",
            "0",
        ),
        (
            {"training": {"optimizer": {"type": "sgd", "momentum": 1}}},
            "/training/optimizer/momentum",
            "less than 1",
            "1",
        ),
        (
            {"training": {"optimizer": {"type": "lion", "layer_decay": 1.5}}},
            "/training/optimizer/layer_decay",
            "at most 1",
            "1.5",
        ),
        ({"training": {"ema_decay": 1}}, "/training/ema_decay", "less than 1", "1"),
        ({"training": {"schedule": {"warmup": 1.0}}}, "/training/schedule/warmup", "less than 1", "1.0"),
        (
            {"training": {"schedule": {"type": "cosine_restarts", "cycles": 0}}},
            "/training/schedule/cycles",
            "at least 1",
            "0",
        ),
        ({"training": {"early_stopping": {"patience": 0}}}, "/training/early_stopping/patience", "at least 1", "0"),
        ({"split": {"validation": 1}}, "/split/validation", "less than 1", "1"),
    ],
)
def test_a_number_out_of_range_is_told_the_limit_and_what_came(
    body: dict[str, Any], pointer: str, limit: str, came: str
) -> None:
    problem = refuse(**body)
    assert (problem.pointer, problem.code) == (pointer, "invalid_value")
    assert limit in problem.message
    assert f" {came}, " in problem.message


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"learning_rate": 1e-4}, "/learning_rate"),
        ({"evaluation": {"calibration": "temperature"}}, "/evaluation/calibration"),
        ({"a/b": 1}, "/a~1b"),
        ({"loss": {"type": "focal", "gama": 2}}, "/loss/gama"),
        ({"loss": {"terms": [{"loss": "focal"}], "type": "focal"}}, "/loss/type"),
        ({"loss": {"terms": [{"loss": "focal"}], "combin": "fixed"}}, "/loss/combin"),
        ({"loss": {"terms": [{"loss": "focal", "wieght": 1}]}}, "/loss/terms/0/wieght"),
        ({"loss": {"terms": [{"loss": "focal"}, {"loss": {"type": "supcon", "tau": 1}}]}}, "/loss/terms/1/loss/tau"),
        (
            {"loss": {"terms": [{"loss": "focal", "weight": {"schedule": "step", "from_": 0, "from": 0, "to": 1}}]}},
            "/loss/terms/0/weight/from_",
        ),
        ({"task": {"type": "regression", "labels": ["a", "b"]}}, "/task/labels"),
        ({"loss": {"type": "cross_entropy", "gamma": 2}}, "/loss/gamma"),
        (
            {"loss": {"type": "cross_entropy", "class_weights": {"scheme": "effective_number", "b": 1}}},
            "/loss/class_weights/b",
        ),
        ({"task": {"type": "text_classification", "classes": []}}, "/task/classes"),
        ({"split": {"train": 0.8}}, "/split/train"),
        ({"tuning": {"type": "full", "layers": 2}}, "/tuning/layers"),
        ({"training": {"learning_rate": 1e-4}}, "/training/learning_rate"),
        ({"training": {"optimizer": {"type": "adamw", "momentum": 0.9}}}, "/training/optimizer/momentum"),
        ({"training": {"schedule": {"type": "cosine", "cycles": 2}}}, "/training/schedule/cycles"),
        ({"tuning": {"type": "frozen", "freeze": ["embeddings"]}}, "/tuning/freeze"),
        ({"training": {"schedule": {"warm_up": 0.1}}}, "/training/schedule/warm_up"),
        ({"training": {"early_stopping": {"monitor": "loss"}}}, "/training/early_stopping/monitor"),
    ],
)
def test_an_unknown_key_is_pointed_at_on_every_level(body: dict[str, Any], pointer: str) -> None:
    problem = refuse(**body)
    assert (problem.pointer, problem.code) == (pointer, "unknown_field")


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"learning_rte": 1e-4}, "'learning_rte'. Fields: name, "),
        ({"epochs": 3}, "It is a field of training. Fields: name, "),
        ({"training": {"learning_rate": 1e-4}}, "It is a field of optimizer. Fields: epochs, "),
        ({"patience": 3}, "It is a field of training.early_stopping."),
        ({"dropout": 0.1}, "It is a field of tuning and of training."),
        ({"training": {"epoch": 3}}, "Did you mean 'epochs'?"),
    ],
)
def test_a_key_on_the_wrong_level_is_told_its_place(body: dict[str, Any], hint: str) -> None:
    assert hint in refuse(**body).message


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("pointer", "wrap"),
    [
        ("/loss/gamma", lambda x: {"loss": {"type": "focal", "gamma": x}}),
        ("/loss/alpha/a", lambda x: {"loss": {"type": "focal", "alpha": {"a": x, "b": 1}}}),
        ("/split/validation", lambda x: {"split": {"validation": x}}),
        ("/training/optimizer/momentum", lambda x: {"training": {"optimizer": {"type": "sgd", "momentum": x}}}),
        ("/training/epochs", lambda x: {"training": {"epochs": x}}),
    ],
)
def test_no_number_is_nan_or_infinite(pointer: str, wrap: Any, number: float) -> None:
    problem = refuse(**wrap(number))
    assert problem.pointer == pointer
    assert json.dumps(number) in problem.message


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"training": {"epochs": "3"}}, "/training/epochs"),
        ({"training": {"epochs": True}}, "/training/epochs"),
        ({"training": {"epochs": 3.0}}, "/training/epochs"),
        ({"training": {"dropout": "0.1"}}, "/training/dropout"),
        ({"training": {"dropout": True}}, "/training/dropout"),
        ({"loss": {"type": "focal", "gamma": "2"}}, "/loss/gamma"),
        ({"loss": {"type": "focal", "gamma": True}}, "/loss/gamma"),
        ({"loss": {"type": "focal", "alpha": {"a": "1"}}}, "/loss/alpha/a"),
        ({"loss": {"type": "focal", "alpha": {"a": True}}}, "/loss/alpha/a"),
        ({"split": {"stratify": 1}}, "/split/stratify"),
        ({"split": {"stratify": "true"}}, "/split/stratify"),
        ({"name": 5}, "/name"),
        ({"metadata": {"team": 5}}, "/metadata/team"),
    ],
)
def test_no_value_is_turned_into_another_kind(body: dict[str, Any], pointer: str) -> None:
    assert refuse(**body).pointer == pointer


@pytest.mark.parametrize(
    ("weights", "pointer"),
    [
        ("balancd", "/loss/class_weights"),
        (2, "/loss/class_weights"),
        (True, "/loss/class_weights"),
        ([1, 2, 3], "/loss/class_weights"),
        ({}, "/loss/class_weights"),
        ({"a": -1}, "/loss/class_weights/a"),
        ({"a": 0, "b": 1}, "/loss/class_weights/a"),  # a step of such rows alone would be divided by 0
        ({"a": None}, "/loss/class_weights/a"),
        ({"a": [1]}, "/loss/class_weights/a"),
        ({"labels": 1, "name": 2, "b": "x"}, "/loss/class_weights/b"),
        ({"scheme": "effective"}, "/loss/class_weights/scheme"),
        ({"scheme": "effective_number", "beta": 1}, "/loss/class_weights/beta"),
        ({"scheme": "effective_number", "beta": -0.5}, "/loss/class_weights/beta"),
    ],
)
def test_class_weights_of_no_known_shape_are_pointed_at(weights: Any, pointer: str) -> None:
    assert refuse(loss={"type": "cross_entropy", "class_weights": weights}).pointer == pointer


def test_class_weights_come_in_three_shapes() -> None:
    def weights(value: Any) -> Any:
        loss = accept(loss={"type": "cross_entropy", "class_weights": value}).loss
        assert isinstance(loss, CrossEntropySpec)
        return loss.class_weights

    assert weights("balanced") == "balanced"
    assert weights({"scheme": "effective_number", "beta": 0.9}) == EffectiveNumber(scheme="effective_number", beta=0.9)
    assert weights({"a": 1, "b": 0.5}) == {"a": 1.0, "b": 0.5}
    # A label may be called anything, "scheme" too.
    assert weights({"scheme": 1, "other": 2}) == {"scheme": 1.0, "other": 2.0}
    assert weights(None) is None


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_bare_string_is_the_loss_with_its_defaults(name: str) -> None:
    assert accept(loss=name) == accept(loss={"type": name})
    assert accept(loss={"terms": [{"loss": name}]}) == accept(loss={"terms": [{"loss": {"type": name}}]})


@pytest.mark.parametrize(("body", "pointer"), [("kd", "/loss"), ({"type": "kd"}, "/loss/teacher")])
def test_a_loss_that_lacks_a_required_field_is_asked_for_it_by_its_name(body: Any, pointer: str) -> None:
    problem = refuse(loss=body)
    assert (problem.pointer, problem.code) == (pointer, "missing_field")
    assert problem.message.startswith("'teacher' is required")


def test_a_teacher_is_a_model_of_ours_never_a_path_or_url() -> None:
    for teacher in ("https://example.com/m", "../mdl_1", "", "mdl_a/b", "mdl_" + "a" * 65):
        assert refuse(loss={"type": "kd", "teacher": teacher}).pointer == "/loss/teacher"


# ---------------------------------------------------------------------------------------------------------- composition


def terms(*some: Any, **others: Any) -> JobSpec:
    return accept(loss={"terms": list(some), **others})


def test_terms_have_a_weight_of_one_and_add_up_unless_told() -> None:
    loss = terms({"loss": "focal"}, {"id": "mine", "loss": "supcon", "weight": 0.2}).loss
    assert isinstance(loss, Composition)
    assert [(term_id(term), term.weight) for term in loss.terms] == [("focal", 1.0), ("mine", 0.2)]
    assert loss.combine == FixedCombine(type="fixed")
    assert terms({"loss": "focal"}, {"loss": "supcon"}, combine="dwa") == terms(
        {"loss": "focal"}, {"loss": "supcon"}, combine={"type": "dwa"}
    )


def test_a_single_loss_is_one_term() -> None:
    focal = accept(loss="focal").loss
    assert focal is not None
    (term,) = terms_of(focal)
    assert (term_id(term), term.weight, term.loss) == ("focal", 1.0, focal)


def test_a_scheduled_weight_is_read_and_written_by_the_same_names() -> None:
    spec = terms({"loss": "focal", "weight": {"schedule": "cosine", "from": 0.5, "to": 2, "end": 0.5}})
    assert isinstance(spec.loss, Composition)
    weight = spec.loss.terms[0].weight
    assert weight == WeightSchedule.model_validate({"schedule": "cosine", "from": 0.5, "to": 2.0, "end": 0.5})
    assert spec.model_dump()["loss"]["terms"][0]["weight"] == {
        "schedule": "cosine",
        "from": 0.5,
        "to": 2.0,
        "start": 0.0,
        "end": 0.5,
    }
    assert JobSpec.model_validate(spec.model_dump()) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("loss", "pointer", "said"),
    [
        ({"terms": []}, "/loss/terms", "at least 1"),
        ({"terms": [{"id": str(i), "loss": "focal"} for i in range(9)]}, "/loss/terms", "at most 8"),
        ({"terms": ["focal"]}, "/loss/terms/0", "must be a JSON object"),
        ({"terms": [{"weight": 1}]}, "/loss/terms/0/loss", "required"),
        ({"terms": [{"loss": "focal", "weight": -1}]}, "/loss/terms/0/weight", "at least 0"),
        ({"terms": [{"loss": "focal", "weight": float("nan")}]}, "/loss/terms/0/weight", "finite"),
        ({"terms": [{"loss": "focal", "weight": True}]}, "/loss/terms/0/weight", "true"),
        ({"terms": [{"loss": "focal", "id": "a b"}]}, "/loss/terms/0/id", "a b"),
        ({"terms": [{"loss": {"type": "focal", "gamma": -1}}]}, "/loss/terms/0/loss/gamma", "at least 0"),
        ({"terms": [{"loss": "focal"}, {"loss": "focal"}]}, "/loss", "two terms are called focal"),
        ({"terms": [{"loss": "focal"}], "combine": "uncertainty"}, "/loss", "needs two or more"),
        (
            {"terms": [{"loss": "focal"}, {"loss": "supcon"}], "combine": {"type": "dwa", "temperature": 0}},
            "/loss/combine/temperature",
            "greater than 0",
        ),
        (
            {"terms": [{"loss": "focal", "weight": {"schedule": "linear", "from": 0}}]},
            "/loss/terms/0/weight/to",
            "required",
        ),
        (
            {
                "terms": [
                    {"loss": "focal", "weight": {"schedule": "step", "from": 0, "to": 1, "start": 0.5, "end": 0.5}}
                ]
            },
            "/loss/terms/0/weight",
            "greater than 'start'",
        ),
        ({"type": "pinball", "quantiles": [0.5, 0.1]}, "/loss/quantiles", "lowest first"),
        ({"type": "focal", "alpha": 0.25}, "/loss/alpha", "only rescales the learning rate"),
        ({"type": "sce", "alpha": 0, "beta": 0}, "/loss", "nothing would be learned"),
    ],
)
def test_a_loss_that_is_put_together_wrongly_says_where(loss: Any, pointer: str, said: str) -> None:
    problem = refuse(loss=loss)
    assert problem.pointer == pointer
    assert said in problem.message


@pytest.mark.parametrize("combine", ["fixed", "normalized"])
def test_one_term_may_be_fixed_or_normalized(combine: str) -> None:
    assert terms({"loss": "focal"}, combine=combine).loss is not None


# ----------------------------------------------------------------------------------------------------------------- task


def test_a_task_is_text_classification_unless_its_type_says_otherwise() -> None:
    assert accept(task={"labels": ["b", "a"]}).task == TextClassification(labels=["b", "a"])
    assert accept(task={"type": "multi_label"}).task == MultiLabel()
    assert accept(task={"type": "ordinal", "labels": ["low", "high"]}).task == Ordinal(labels=["low", "high"])
    assert accept(task={"type": "regression", "standardize": False}).task == Regression(standardize=False)


def test_two_bad_values_are_both_told() -> None:
    problems = problems_of({"dataset": "ds_1", "loss": {"type": "focal", "gamma": -1}, "training": {"epochs": "x"}})
    assert [problem.pointer for problem in problems] == ["/training/epochs", "/loss/gamma"]


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    problem = refuse(split={"validation": 0.6, "test": 0.5})
    assert problem.pointer == "/split"
    assert "0.6" in problem.message
    assert "less than 1" in problem.message


def test_an_optimizer_and_a_schedule_may_be_given_by_their_names_alone() -> None:
    training = accept(training={"optimizer": "lion", "schedule": "one_cycle"}).training
    assert training.optimizer == Lion(type="lion")
    assert training.schedule == OneCycle(type="one_cycle", warmup=0.3)


def test_an_optimizer_or_a_schedule_without_a_type_is_the_usual_one() -> None:
    training = accept(training={"optimizer": {"beta2": 0.98}, "schedule": {"warmup": 0.2}}).training
    assert training.optimizer == AdamW(type="adamw", beta2=0.98)
    assert training.schedule == Linear(type="linear", warmup=0.2)


def test_nesterov_needs_momentum() -> None:
    problem = refuse(training={"optimizer": {"type": "sgd", "momentum": 0.0, "nesterov": True}})
    assert problem.pointer == "/training/optimizer"
    assert "'nesterov' needs a 'momentum' greater than 0" in problem.message


def test_a_label_named_twice_is_refused() -> None:
    problem = refuse(task={"labels": ["a", "b", "a"]})
    assert problem.pointer == "/task"
    assert "more than once" in problem.message


@pytest.mark.parametrize(
    ("body", "pointer", "near"),
    [
        ({"tuning": {"type": "frozn"}}, "/tuning/type", "frozen"),
        ({"training": {"optimizer": {"type": "lyon"}}}, "/training/optimizer/type", "lion"),
        ({"training": {"schedule": {"type": "linar"}}}, "/training/schedule/type", "linear"),
        ({"training": {"precision": "float23"}}, "/training/precision", "float32"),
        ({"task": {"type": "multilabel"}}, "/task/type", "multi_label"),
        ({"evaluation": {"calibrate": "temprature"}}, "/evaluation/calibrate", "temperature"),
        ({"loss": {"terms": [{"loss": "focl"}]}}, "/loss/terms/0/loss", "focal"),
        ({"loss": {"terms": [{"loss": {"type": "focl"}}]}}, "/loss/terms/0/loss/type", "focal"),
        ({"loss": {"terms": [{"loss": "focal"}], "combine": "fixd"}}, "/loss/combine", "fixed"),
        (
            {"loss": {"terms": [{"loss": "focal", "weight": {"schedule": "liner", "from": 0, "to": 1}}]}},
            "/loss/terms/0/weight/schedule",
            "linear",
        ),
    ],
)
def test_a_misspelt_choice_is_told_which_one_is_near(body: dict[str, Any], pointer: str, near: str) -> None:
    problem = refuse(**body)
    assert problem.pointer == pointer
    assert f"Did you mean '{near}'?" in problem.message


def test_metadata_is_bounded() -> None:
    assert refuse(metadata={str(i): "x" for i in range(17)}).pointer == "/metadata"
    assert refuse(metadata={"k" * 65: "x"}).pointer == f"/metadata/{'k' * 65}"
    assert refuse(metadata={"k": "x" * 513}).pointer == "/metadata/k"
    assert accept(metadata={"k" * 64: "x" * 512}).metadata == {"k" * 64: "x" * 512}


def test_a_spec_survives_json() -> None:
    spec = accept(
        loss={"type": "focal", "gamma": 1, "alpha": {"a": 1, "b": 2}},
        task={"labels": ["b", "a"]},
        training={"early_stopping": {"metric": "loss"}, "optimizer": {"type": "sgd"}},
        metadata={"team": "nlp"},
    )
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(spec.model_dump()) == spec


def test_a_spec_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        accept().training = Training()  # type: ignore[misc]


def test_the_json_schema_names_every_loss_with_its_limits() -> None:
    schema = JobSpec.model_json_schema()
    assert schema["required"] == ["dataset"]
    assert schema["additionalProperties"] is False
    gamma = schema["$defs"]["FocalSpec"]["properties"]["gamma"]
    assert (gamma["minimum"], gamma["maximum"], gamma["default"]) == (0, 5, FocalSpec(type="focal").gamma)
    assert {spec.__name__ for spec in LOSS_SPECS.values()} <= set(schema["$defs"])
    assert {"Composition", "WeightSchedule", "UncertaintyCombine"} <= set(schema["$defs"])
