"""What else than labels by softmax is served: other heads, calibration, thresholds, numbers in their own units."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ml.artifact.description import HEAD, ONNX, read_description
from ml.artifact.join import join_head
from ml.data.splits import Part
from ml.inference.backends import OnnxBackend, open_session
from ml.inference.classifier import OnnxClassifier
from ml.tasks.multi_label import MultiLabelTask
from ml.tasks.text_classification import TextClassificationTask
from ml.training.prepare import logits_of
from tests.ml.conftest import Exported, export
from tests.ml.runs import MACHINE, lay_out, prepare_run, trained_logits
from tests.tiny_base import learnable_rows

ROWS = learnable_rows(90)
GRADED = [(text, str(1 + i % 3)) for i, (text, _) in enumerate(ROWS)]  # delivery 1, other 2, refund 3
SEVERAL = [(text, json.dumps([label, *(["long"] if len(text) > 45 else [])])) for text, label in ROWS]
MEASURED = [(text, f"{1000 + 50 * (i % 3)}") for i, (text, _) in enumerate(ROWS)]
LEARNING: dict[str, Any] = {"epochs": 2, "optimizer": {"type": "adamw", "learning_rate": 5e-3}}
TEXTS = [text for text, _ in learnable_rows(9, seed=9)]


class Models:
    """Trained and exported once for each name."""

    def __init__(self, folder: Path, base: Path) -> None:
        self._folder, self._base = folder, base
        self._made: dict[str, Exported] = {}

    def __call__(self, name: str, **options: Any) -> Exported:
        if name not in self._made:
            run = lay_out(self._folder / name, **{"training": LEARNING, **options})
            self._made[name] = export(run, prepare_run(run, self._base))
        return self._made[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Models:
    return Models(tmp_path_factory.mktemp("models"), tiny_base)


def serve(model: Exported) -> OnnxClassifier:
    return OnnxClassifier(model.artifact, model.runtime, OnnxBackend(model.runtime / ONNX, 1))


def validation_of(model: Exported) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets of the validation rows."""
    prepared = model.prepared
    rows = prepared.rows_of(Part.VALIDATION)
    return logits_of(prepared.network, prepared.tokens, rows, MACHINE), prepared.targets.labels.numpy()[rows]


# ---------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("loss", ["coral", "cumulative_link", "corn"])
def test_transformers_loads_a_model_of_levels_with_the_same_answers(models: Models, loss: str) -> None:
    model = models(loss, rows=GRADED, loss=loss, task={"type": "ordinal"})
    assert read_description(model.artifact).loads_in_transformers
    loaded, loading = AutoModelForSequenceClassification.from_pretrained(
        model.artifact, local_files_only=True, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    served = serve(model)
    encodings = served.tokenize(TEXTS)
    with torch.no_grad():
        logits = np.concatenate(
            [
                loaded.eval()(
                    input_ids=torch.tensor([e.ids]),
                    attention_mask=torch.tensor([e.attention_mask]),
                    token_type_ids=torch.tensor([e.type_ids]),
                ).logits.numpy()
                for e in encodings
            ]
        )
    assert logits.shape == (9, 2)  # three levels
    np.testing.assert_allclose(logits, served.logits(encodings), rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, trained_logits(model.prepared, TEXTS), rtol=0, atol=1e-4)


def test_folding_leaves_the_answers_of_a_model_of_levels_as_they_were(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepare_run(lay_out(tmp_path, rows=GRADED, loss="coral", task={"type": "ordinal"}), tiny_base)
    rows = np.arange(20)
    before = logits_of(prepared.network, prepared.tokens, rows, MACHINE)
    assert prepared.network.fold()  # type: ignore[operator]
    assert isinstance(prepared.network.head, torch.nn.Linear)
    np.testing.assert_allclose(logits_of(prepared.network, prepared.tokens, rows, MACHINE), before, rtol=0, atol=1e-6)


def test_a_cosine_head_is_served_and_says_that_transformers_cannot_load_it(models: Models) -> None:
    model = models("arcface", loss={"type": "arcface", "scale": 16})
    described = read_description(model.artifact)
    assert (described.head, described.loads_in_transformers) == ("native", False)
    served = serve(model)
    logits = served.logits(served.tokenize(TEXTS))
    np.testing.assert_allclose(logits, trained_logits(model.prepared, TEXTS), rtol=0, atol=16e-4)
    assert np.abs(logits).max() <= 16 + 1e-3


def test_a_cosine_head_over_a_frozen_encoder_answers_the_same_by_itself_and_joined(
    models: Models, tmp_path: Path
) -> None:
    model = models("frozen", loss={"type": "cosface", "scale": 16}, tuning={"type": "frozen"})
    described = read_description(model.artifact)
    assert (described.head, described.loads_in_transformers) == ("cosine", False)
    served = serve(model)
    encodings = served.tokenize(TEXTS)
    logits = served.logits(encodings)
    np.testing.assert_allclose(logits, trained_logits(model.prepared, TEXTS), rtol=0, atol=16e-4)
    join_head(model.runtime / ONNX, model.artifact / HEAD, tmp_path / "model.onnx", is_cosine=True)
    session = open_session(tmp_path / "model.onnx", 1)
    for encoding, expected in zip(encodings, logits, strict=True):
        feeds = {
            "input_ids": np.array([encoding.ids]),
            "attention_mask": np.array([encoding.attention_mask]),
            "token_type_ids": np.array([encoding.type_ids]),
        }
        (answer,) = session.run(None, feeds)
        np.testing.assert_allclose(answer[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", ["coral", "cumulative_link"])
def test_a_head_of_levels_over_a_frozen_encoder_is_stored_as_a_linear_one(models: Models, loss: str) -> None:
    model = models(f"frozen-{loss}", rows=GRADED, loss=loss, task={"type": "ordinal"}, tuning={"type": "frozen"})
    assert read_description(model.artifact).head == "linear"
    served = serve(model)
    logits = served.logits(served.tokenize(TEXTS))
    np.testing.assert_allclose(logits, trained_logits(model.prepared, TEXTS), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_a_temperature_fitted_on_validation_is_what_the_served_model_divides_by(models: Models, loss: str) -> None:
    model = models(loss, rows=ROWS, loss=loss)
    temperature = read_description(model.artifact).task.temperature
    assert temperature == model.fitted.state.temperature != 1
    served = serve(model)
    assert isinstance(served.task, TextClassificationTask)
    logits = served.logits(served.tokenize(TEXTS))
    scaled = np.exp(logits.astype(float) / temperature)
    expected = scaled / scaled.sum(-1, keepdims=True)
    for result, row in zip(served.task.decode(logits), expected, strict=True):
        assert list(result["scores"].values()) == pytest.approx(row.tolist())
    # It is the best for validation, and what was measured there was measured with it.
    outputs, targets = validation_of(model)
    assert model.fitted.metrics["validation"] == served.task.evaluate(outputs, targets)
    plain = model.prepared.task.evaluate(outputs, targets)
    assert model.fitted.metrics["validation"]["loss"] < plain["loss"]
    assert model.fitted.metrics["validation"]["accuracy"] == plain["accuracy"]


def test_what_was_not_asked_for_is_not_fitted(models: Models) -> None:
    model = models("as it is", rows=ROWS, evaluation={"calibrate": None})
    assert read_description(model.artifact).task.temperature == 1


def test_scores_of_hinge_become_probabilities_by_platt(models: Models) -> None:
    plain = models("hinge", rows=ROWS, loss="hinge")
    model = models("platt", rows=ROWS, loss="hinge", evaluation={"calibrate": "platt"})
    assert "loss" not in plain.fitted.metrics["validation"]
    assert {"loss", "ece", "brier"} <= model.fitted.metrics["validation"].keys()
    state = read_description(model.artifact).task
    assert (len(state.platt or []), state.temperature, state.reading) == (3, 1, "scores")
    served = serve(model)
    for result in served.task.decode(served.logits(served.tokenize(TEXTS))):
        assert sum(result["scores"].values()) == pytest.approx(1)
        assert min(result["scores"].values()) > 0


def test_thresholds_fitted_on_validation_decide_which_labels_are_given(models: Models) -> None:
    model = models("several", rows=SEVERAL, loss="bce")
    thresholds = read_description(model.artifact).task.thresholds
    assert thresholds == model.fitted.state.thresholds
    assert thresholds is not None
    assert thresholds != [0.5] * 4
    served = serve(model)
    assert isinstance(served.task, MultiLabelTask)
    for result in served.task.decode(served.logits(served.tokenize(TEXTS))):
        passed = [label for (label, score), t in zip(result["scores"].items(), thresholds, strict=True) if score >= t]
        assert result["labels"] == passed
    metrics = model.fitted.metrics["validation"]
    assert metrics["macro_f1"] >= metrics["macro_f1_at_half"]
    halves = models("halves", rows=SEVERAL, loss="bce", evaluation={"thresholds": None})
    assert read_description(halves.artifact).task.thresholds is None
    assert halves.fitted.metrics["validation"]["macro_f1"] == pytest.approx(metrics["macro_f1_at_half"])


@pytest.mark.parametrize("loss", ["mse", "gaussian_nll", "pinball"])
def test_numbers_are_answered_in_their_own_units(models: Models, loss: str) -> None:
    task = {"type": "regression"}
    model = models(f"numbers-{loss}", rows=MEASURED, loss=loss, task=task)
    served = serve(model)
    state = read_description(model.artifact).task
    assert state.scale == pytest.approx(40.8, rel=0.05)  # of 1000, 1050 and 1100
    results = served.task.decode(served.logits(served.tokenize(TEXTS)))
    for result in results:
        assert 900 < result["value"] < 1200
        assert result.get("standard_deviation", 40) > 1  # of the target, not of the standardised one
        assert all(800 < value < 1300 for value in result.get("quantiles", {}).values())
    assert 5 < model.fitted.metrics["validation"]["rmse"] < 100
