"""Answers in the order given, whoever else is in the batch; and no answers from a model that gives wrong ones."""

import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ml.artifact.description import DESCRIPTION, HEAD, INT8, ONNX, read_description
from ml.artifact.manifest import verify_folder
from ml.evaluation.scores import softmax
from ml.inference.backends import OnnxBackend, OnnxEngine
from ml.inference.cache import ModelCache
from ml.inference.classifier import MAX_BATCH_TOKENS, OnnxClassifier, WrongAnswersError, load_classifier
from ml.inference.shared import Shared
from ml.training.export import export_artifact
from ml.training.run import RunDirectory
from tests.ml.conftest import Exported
from tests.ml.runs import flip_a_bit
from tests.tiny_base import LABEL_WORDS, learnable_rows

# Of very different lengths, some cut at the maximum, one of them blank.
TEXTS = [text for text, _ in learnable_rows(30, seed=2)] + ["", "hello", "money back " * 40, "where is my van " * 5]


def load(exported: Exported, folder: Path | None = None) -> OnnxClassifier:
    return OnnxClassifier(folder or exported.artifact, exported.runtime, OnnxBackend(exported.runtime / ONNX, 1))


@pytest.fixture(scope="module", params=["exported_full", "exported_frozen"])
def exported(request: pytest.FixtureRequest) -> Exported:
    value: Exported = request.getfixturevalue(request.param)
    return value


@pytest.fixture(scope="module")
def classifier(exported: Exported) -> OnnxClassifier:
    return load(exported)


def alone(classifier: OnnxClassifier, text: str) -> np.ndarray:
    return softmax(classifier.logits(classifier.tokenize([text])))[0]


def test_answers_come_in_the_order_of_the_texts(classifier: OnnxClassifier) -> None:
    answers = softmax(classifier.logits(classifier.tokenize(TEXTS)))
    backwards = softmax(classifier.logits(classifier.tokenize(TEXTS[::-1])))
    np.testing.assert_allclose(backwards[::-1], answers, rtol=0, atol=1e-5)
    assert len(np.unique(answers.round(3), axis=0)) > 20  # else any order would do


def test_an_answer_does_not_depend_on_who_shares_the_batch(classifier: OnnxClassifier) -> None:
    expected = {text: alone(classifier, text) for text in TEXTS}
    chance = random.Random(4)
    for _ in range(20):
        company = chance.sample(TEXTS, k=chance.randint(2, len(TEXTS)))
        answers = softmax(classifier.logits(classifier.tokenize(company)))
        for text, answer in zip(company, answers, strict=True):
            np.testing.assert_allclose(answer, expected[text], rtol=0, atol=1e-5)


def test_more_tokens_than_one_pass_holds_are_answered_all_the_same(classifier: OnnxClassifier) -> None:
    texts = TEXTS * 8
    encodings = classifier.tokenize(texts)
    assert len(texts) * max(len(encoding.ids) for encoding in encodings) > 2 * MAX_BATCH_TOKENS
    answers = softmax(classifier.logits(encodings))
    expected = np.stack([alone(classifier, text) for text in TEXTS] * 8)
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5)


def test_a_text_is_cut_where_the_network_was_trained_to(classifier: OnnxClassifier) -> None:
    longest = max(len(encoding.ids) for encoding in classifier.tokenize(TEXTS))
    assert longest == classifier.description.max_length == 32


def test_logits_are_decoded_by_the_artifacts_own_labels(classifier: OnnxClassifier) -> None:
    (result,) = classifier.task.decode(classifier.logits(classifier.tokenize(["hello"])))
    assert list(result["scores"]) == sorted(LABEL_WORDS)
    assert result["label"] == max(result["scores"], key=result["scores"].__getitem__)


@pytest.mark.parametrize("wrong", [0.001, -1.0, float("nan")])
def test_a_model_whose_probe_answers_differ_is_refused(exported: Exported, tmp_path: Path, wrong: float) -> None:
    copy = Path(shutil.copytree(exported.artifact, tmp_path / "copy"))
    described = json.loads((copy / DESCRIPTION).read_text())
    described["probe"]["logits"][3][1] += wrong
    (copy / DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(WrongAnswersError, match="probe texts"):
        load(exported, copy)


def test_a_difference_within_the_tolerance_is_served(exported: Exported, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported.artifact, tmp_path / "copy"))
    described = json.loads((copy / DESCRIPTION).read_text())
    described["probe"]["logits"][3][1] += described["probe"]["tolerance"] / 2
    (copy / DESCRIPTION).write_text(json.dumps(described))
    assert load(exported, copy).description.task == read_description(exported.artifact).task


def test_another_models_file_is_refused(exported_full: Exported, exported_frozen: Exported, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported_frozen.artifact, tmp_path / "copy"))
    head = load_file(copy / HEAD)
    save_file({"weight": head["weight"][::-1].copy(), "bias": head["bias"]}, copy / HEAD)
    with pytest.raises(WrongAnswersError):
        load(exported_frozen, copy)


# ----------------------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def int8_artifact(exported_full: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, of so many texts that int8 may be served."""
    run = RunDirectory(tmp_path_factory.mktemp("int8"))
    export_artifact(run, exported_full.prepared, exported_full.fitted, dataset_sha256=None, int8_texts=60)
    return run.artifact


def serve(folder: Path) -> tuple[OnnxClassifier, list[str]]:
    """The classifier, and the files that were opened for it."""
    opened: list[str] = []

    class Watched(OnnxEngine):
        def open(self, file: Path) -> OnnxBackend:
            opened.append(file.name)
            return super().open(file)

    return load_classifier(folder, folder, Shared(Watched(1))), opened


def test_a_model_is_served_from_the_file_its_description_names(int8_artifact: Path, exported_full: Exported) -> None:
    assert read_description(int8_artifact).serving.format == "onnx-int8"
    assert INT8 in verify_folder(int8_artifact)["files"]
    assert serve(int8_artifact)[1] == [INT8]
    assert serve(exported_full.artifact)[1] == [ONNX]


def test_a_damaged_int8_file_is_left_and_float32_served(
    int8_artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(int8_artifact, tmp_path / "copy"))
    flip_a_bit(copy / INT8)
    with caplog.at_level(logging.WARNING):
        assert serve(copy)[1] == [ONNX]
    assert "is served in float32" in caplog.text
    cached = ModelCache(0, OnnxEngine(1)).get("mdl_1", lambda: (copy, copy))
    assert cached.logits(cached.tokenize(["hello"])).shape == (1, 3)
    (copy / INT8).unlink()
    assert serve(copy)[1] == [ONNX]


@pytest.mark.parametrize(("moved", "files"), [(0.01, [INT8]), (2.0, [INT8, ONNX]), (float("nan"), [INT8, ONNX])])
def test_an_int8_file_that_answers_otherwise_here_than_where_it_was_made_is_left(
    int8_artifact: Path, tmp_path: Path, moved: float, files: list[str]
) -> None:
    copy = Path(shutil.copytree(int8_artifact, tmp_path / "copy"))
    described = json.loads((copy / DESCRIPTION).read_text())
    described["int8_probe"][3][1] += moved
    (copy / DESCRIPTION).write_text(json.dumps(described))
    classifier, opened = serve(copy)
    assert opened == files
    exact = OnnxClassifier(copy, copy, OnnxBackend(copy / ONNX, 1))
    encodings = classifier.tokenize(TEXTS)
    is_exact = np.array_equal(classifier.logits(encodings), exact.logits(encodings))
    assert is_exact == (files[-1] == ONNX)


def test_float32_that_answers_wrongly_is_refused_even_behind_an_int8_file(int8_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(int8_artifact, tmp_path / "copy"))
    described = json.loads((copy / DESCRIPTION).read_text())
    described["int8_probe"][0][0] += 5
    described["probe"]["logits"][0][0] += 5
    (copy / DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(WrongAnswersError, match="probe texts"):
        serve(copy)
