"""What a caller may ask beyond the plain answer, in every task; and what means nothing for a task is refused."""

from typing import Any

import numpy as np
import pytest

from app.predictions.schemas import Prediction
from ml.evaluation.scores import sigmoid, softmax
from ml.inference.answers import AnswerCache
from tests.app.predictions.house import House

TEXT = "where is my parcel"
TEXTS = [TEXT, "i want my money back", "music", "courier refund"]
LABELS = ["delivery", "other", "refund"]
QUANTILES = {"type": "regression", "reading": "quantiles", "labels": [], "quantiles": [0.1, 0.5, 0.9]}

Models = dict[str, str]


@pytest.fixture(scope="module")
def models(house: House) -> Models:
    """A model of each task by its type, with the outputs of the house's own."""
    return {
        "text_classification": house.model,
        "multi_label": house.copy_model(task={"type": "multi_label", "reading": "sigmoid", "thresholds": [0.9] * 3}),
        "ordinal": house.copy_model(task={"type": "ordinal"}),
        "regression": house.copy_model(task=QUANTILES),
        "pairs": house.copy_model(takes_pairs=True),
    }


# ------------------------------------------------------------------------------------------ scores and what is answered


def test_an_option_that_is_null_is_none(house: House) -> None:
    options = dict.fromkeys(["top_k", "labels", "threshold", "raw", "abstain_below"])
    assert house.predict(TEXTS, **options) == house.predict(TEXTS)


def test_top_k_keeps_the_highest_scores_in_their_order(house: House) -> None:
    for plain, result in zip(house.predict(TEXTS), house.predict(TEXTS, top_k=2), strict=True):
        highest = sorted(plain["scores"].items(), key=lambda item: -item[1])[:2]
        assert list(result["scores"].items()) == highest
        assert (result["label"], result["score"]) == (plain["label"], plain["score"])


def test_top_k_beyond_the_labels_keeps_them_all(house: House) -> None:
    assert house.predict(TEXT, top_k=1000) == house.predict(TEXT)


def test_labels_leave_the_answer_as_it_is_and_go_before_top_k(house: House) -> None:
    for plain, result in zip(house.predict(TEXTS), house.predict(TEXTS, labels=["refund", "other"]), strict=True):
        assert result == {**plain, "scores": {label: plain["scores"][label] for label in ("refund", "other")}}
    (result,) = house.predict(TEXT, labels=["refund", "other"], top_k=1)
    assert len(result["scores"]) == 1
    assert "delivery" not in result["scores"]


def test_a_threshold_stands_in_for_the_fitted_ones(house: House, models: Models) -> None:
    model = models["multi_label"]
    for threshold in (0.0, 0.4, 1.0):
        for plain, result in zip(
            house.predict(TEXTS, model), house.predict(TEXTS, model, threshold=threshold), strict=True
        ):
            assert plain["labels"] == [label for label in LABELS if plain["scores"][label] >= 0.9]
            assert result["labels"] == [label for label in LABELS if plain["scores"][label] >= threshold]
            assert result["scores"] == plain["scores"]


def test_raw_is_what_stands_before_calibration_and_activation(house: House, models: Models) -> None:
    half = house.copy_model(task={"temperature": 2.0})
    twice = house.copy_model(task={"type": "multi_label", "reading": "sigmoid", "temperature": 0.5})
    for model, activate, temperature in [(half, softmax, 2.0), (twice, sigmoid, 0.5)]:
        for result in house.predict(TEXTS, model, raw=True):
            logits = np.array(list(result["raw"].values()))
            assert list(result["raw"]) == list(result["scores"]) == LABELS
            np.testing.assert_allclose(list(result["scores"].values()), activate(logits / temperature), atol=1e-9)
    (value,) = house.predict(TEXT, models["regression"], raw=True)
    assert list(value["raw"]) == ["0.1", "0.5", "0.9"]
    assert sorted(value["raw"].values()) == pytest.approx(list(value["quantiles"].values()))


@pytest.mark.parametrize(("task", "answer"), [("text_classification", "label"), ("multi_label", "labels")])
def test_it_abstains_where_the_score_is_below(house: House, models: Models, task: str, answer: str) -> None:
    plain = house.predict(TEXTS, models[task])
    below = sorted(result["score"] for result in plain)[2]  # two are below, and it is not below itself
    results = house.predict(TEXTS, models[task], abstain_below=below)
    assert sum("abstained" in result for result in results) == 2
    for before, result in zip(plain, results, strict=True):
        expected = {**before, answer: None, "abstained": True} if before["score"] < below else before
        assert result == expected


# ------------------------------------------------------------------------------------------------------------- refusals

_REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("text_classification", {"top_k": 0}, "/top_k", "invalid_value"),
    ("text_classification", {"top_k": 1.5}, "/top_k", "invalid_value"),
    ("text_classification", {"labels": []}, "/labels", "invalid_value"),
    ("text_classification", {"labels": ["refund", "refunds"]}, "/labels/1", "unknown_label"),
    ("text_classification", {"threshold": 0.3}, "/threshold", "option_not_for_task"),
    ("ordinal", {"threshold": 0.3}, "/threshold", "option_not_for_task"),
    ("multi_label", {"threshold": 1.5}, "/threshold", "invalid_value"),
    ("text_classification", {"abstain_below": 80}, "/abstain_below", "invalid_value"),
    ("text_classification", {"raw": 1}, "/raw", "invalid_value"),
    ("text_classification", {"windows": {"overlap": 62}}, "/windows/overlap", "invalid_value"),
    ("text_classification", {"windows": {"overlap": -1}}, "/windows/overlap", "invalid_value"),
    ("text_classification", {"windows": {"pooling": "min"}}, "/windows/pooling", "invalid_value"),
    ("text_classification", {"windows": {"stride": 3}}, "/windows/stride", "unknown_field"),
    ("ordinal", {"windows": {"pooling": "max"}}, "/windows/pooling", "option_not_for_task"),
    (
        "pairs",
        {"windows": {}, "input": {"text": "a", "text_pair": "b"}},
        "/windows",
        "option_not_for_pairs",
    ),
    ("regression", {"top_k": 3}, "/top_k", "option_not_for_task"),
    ("regression", {"labels": ["refund"]}, "/labels", "option_not_for_task"),
    ("regression", {"threshold": 0.3}, "/threshold", "option_not_for_task"),
    ("regression", {"abstain_below": 0.3}, "/abstain_below", "option_not_for_task"),
]


@pytest.mark.parametrize(("task", "options", "param", "code"), _REFUSED)
def test_what_means_nothing_is_refused_with_its_place(
    house: House, models: Models, task: str, options: dict[str, Any], param: str, code: str
) -> None:
    error = house.refuse(422, **{"model": models[task], "input": TEXT, **options})
    assert (error["param"], error["code"]) == (param, code)


def test_a_refused_label_is_told_with_those_that_are_known(house: House) -> None:
    error = house.refuse(422, input=TEXT, labels=["refunds"])
    assert "'refunds' is no label of this model, which knows 'delivery', 'other', 'refund'." in error["message"]


# --------------------------------------------------------------------------------------------------------------- shapes


def test_every_result_is_as_documented(house: House, models: Models) -> None:
    for task, model in models.items():
        options: dict[str, Any] = {"raw": True}
        if task != "regression":
            options |= {"top_k": 2, "abstain_below": 0.999}
        given: list[Any] = ["parcel " * 200, TEXT]
        if task == "pairs":
            given = [{"text": text, "text_pair": TEXT} for text in given]
        body = {"model": model, "input": given, **options}
        reply = house.client.post("/v1/predictions", json=body).json()
        dumped = Prediction.model_validate(reply, strict=True, extra="forbid").model_dump(exclude_unset=True)
        assert dumped == reply


# ----------------------------------------------------------------------------------------------------------- long texts


def test_a_text_that_is_cut_says_so(house: House, models: Models) -> None:
    exact = "parcel " * (64 - 2)
    cut, whole = house.predict([exact + "parcel", exact])
    (pair,) = house.predict({"text": exact, "text_pair": "parcel"}, models["pairs"])
    assert cut["truncated"] is True
    assert "truncated" not in whole
    assert pair["truncated"] is True
    assert cut["scores"] == pytest.approx(whole["scores"], abs=1e-5)


HALVES = ["parcel " * 62, "money " * 62]  # a window each


def test_windows_answer_from_the_mean_or_the_maximum_of_their_scores(house: House, models: Models) -> None:
    for task in ("text_classification", "multi_label"):
        parts = house.predict(HALVES, models[task])
        for pooling, pooled in [("mean", np.mean), ("max", np.max)]:
            windows = {"pooling": pooling}
            (result, short) = house.predict(["".join(HALVES), TEXT], models[task], windows=windows)
            expected = {label: pooled([part["scores"][label] for part in parts]) for label in LABELS}
            assert result["scores"] == pytest.approx(expected, abs=1e-5)
            assert result["score"] == max(result["scores"].values())
            assert (result["windows"], short["windows"]) == (2, 1)
            assert "truncated" not in result


def test_windows_of_a_regression_pool_its_outputs(house: House, models: Models) -> None:
    parts = house.predict(HALVES, models["regression"], raw=True)
    (result,) = house.predict("".join(HALVES), models["regression"], raw=True, windows={"pooling": "mean"})
    for name in ("0.1", "0.5", "0.9"):
        assert result["raw"][name] == pytest.approx(np.mean([part["raw"][name] for part in parts]), abs=1e-5)
    assert result["value"] == pytest.approx(sorted(result["raw"].values())[1])


def test_windows_go_with_the_other_options(house: House) -> None:
    (result,) = house.predict(
        "".join(HALVES), windows={"pooling": "max", "overlap": 20}, top_k=1, abstain_below=1.0, raw=True
    )
    assert (result["label"], result["abstained"], len(result["scores"]), result["windows"]) == (None, True, 1, 3)


def test_more_windows_than_a_call_takes_are_refused(house: House) -> None:
    error = house.refuse(422, input="parcel " * 5000, windows={"overlap": 61})
    assert (error["param"], error["code"]) == ("/windows", "too_many_windows")


# ----------------------------------------------------------------------------------------------------------- explaining


@pytest.mark.parametrize("task", ["text_classification", "multi_label", "ordinal", "regression"])
def test_a_words_effect_is_how_far_the_answer_falls_without_it(house: House, models: Models, task: str) -> None:
    text = "where is my unheardof parcel"
    words = text.split()
    (plain,) = house.predict(text, models[task])
    (result,) = house.predict(text, models[task], explain=True)
    explanation = result.pop("explanation")
    shorter = house.predict([" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))], models[task])
    label = explanation["label"]

    def answer(of: dict[str, Any]) -> float:
        return float(of["value"] if task == "regression" else of["scores"][label])

    assert (label is None) == (task == "regression")
    assert [word["word"] for word in explanation["words"]] == words
    assert [text[word["start"] : word["end"]] for word in explanation["words"]] == words
    expected = [answer(plain) - answer(one) for one in shorter]
    assert [word["effect"] for word in explanation["words"]] == pytest.approx(expected, abs=1e-5)
    assert answer(result) == pytest.approx(answer(plain), abs=1e-5)


def test_pairs_and_cut_texts_are_explained_as_far_as_they_are_read(house: House, models: Models) -> None:
    (pair,) = house.predict({"text": "my money", "text_pair": "late"}, models["pairs"], explain=True)
    (cut,) = house.predict("parcel " * 100, explain=True)
    words = pair["explanation"]["words"]
    assert [(word["part"], word["word"]) for word in words] == [
        ("text", "my"), ("text", "money"), ("text_pair", "late")
    ]  # fmt: skip
    assert (cut["truncated"], len(cut["explanation"]["words"])) == (True, 62)


def test_more_than_a_call_explains_is_refused(house: House) -> None:
    for given, code in [([TEXT] * 17, "too_many_texts"), (["parcel " * 60] * 9, "too_many_words")]:
        error = house.refuse(422, input=given, explain=True)
        assert (error["param"], error["code"]) == ("/input", code)
    error = house.refuse(422, input=TEXT, explain=True, windows={})
    assert (error["param"], error["code"]) == ("/explain", "options_conflict")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("given", ["NaN", "[NaN]", "Infinity"])
def test_what_is_no_json_number_is_refused_where_it_stands(house: House, given: str) -> None:
    for field, body in [("/input", f'"input": {given}'), ("/abstain_below", f'"input": "a", "abstain_below": {given}')]:
        error = house.refuse(422, content=f'{{"model": "{house.model}", {body}}}')
        assert error["param"].startswith(field)


def test_half_a_surrogate_pair_in_a_label_is_refused(house: House) -> None:
    house.refuse(422, content=f'{{"model": "{house.model}", "input": "a", "labels": ["\\ud800"]}}')


def test_ten_thousand_texts_and_a_text_of_a_megabyte_are_refused(house: House) -> None:
    assert house.refuse(422, input=["a"] * 10_000)["code"] == "too_many_texts"
    assert house.refuse(413, input="x" * 1_000_000)["code"] == "body_too_large"


# --------------------------------------------------------------------------------------------------------- answer cache


def test_a_text_that_comes_again_is_answered_from_the_cache_whatever_the_options(
    house: House, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = house.predict(TEXTS)
    monkeypatch.setattr(house.services.predictions, "_answers", AnswerCache(1_000_000))

    def ask(given: Any, model: str = house.model, **options: Any) -> tuple[int, list[dict[str, Any]]]:
        body = {"model": model, "input": given, **options}
        reply = house.client.post("/v1/predictions", json=body).raise_for_status().json()
        Prediction.model_validate(reply, strict=True, extra="forbid")
        return reply["timings_ms"]["cached"], reply["results"]

    assert ask(TEXTS[:2])[0] == 0
    for cached in (2, 4):
        found, results = ask(TEXTS)
        assert found == cached
        assert [result["scores"] for result in results] == [pytest.approx(one["scores"], abs=1e-5) for one in plain]
    assert ask(TEXTS, top_k=1, raw=True)[0] == 4
    assert ask("".join(HALVES), windows={})[0] == 0
    assert ask("".join(HALVES), windows={})[0] == 2
    assert ask("where is", explain=True)[0] == 0
    assert ask("where is", explain=True)[0] == 3
    assert ask(TEXTS, models["multi_label"])[0] == 0
