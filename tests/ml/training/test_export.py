"""What is exported answers as the network that was trained, for us and for transformers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ml.artifact.description import HEAD, INT8, ONNX, PROBE_TEXTS, read_description
from ml.artifact.manifest import MANIFEST, folder_bytes, manifest_sha256, read_manifest, verify_folder
from ml.bases import DEFAULT_BASE, base_sha256, find_base
from ml.inference.backends import OnnxBackend, open_session
from ml.inference.classifier import OnnxClassifier
from tests.ml.conftest import Exported, export
from tests.ml.runs import lay_out, prepare_run, trained_logits
from tests.tiny_base import LABEL_WORDS, learnable_rows

TEXTS = [*(text for text, _ in learnable_rows(12, seed=9)), "where is my parcel " * 30, "", "Ünïcode 猫!"]
LABELS = sorted(LABEL_WORDS)


def test_transformers_loads_the_artifact_whole_with_the_same_answers(exported_full: Exported) -> None:
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        exported_full.artifact, local_files_only=True, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[kind], kind
    tokenizer = AutoTokenizer.from_pretrained(exported_full.artifact, local_files_only=True)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.numpy()
    np.testing.assert_allclose(logits, trained_logits(exported_full.prepared, TEXTS), rtol=0, atol=1e-4)
    assert [model.config.id2label[i] for i in range(3)] == LABELS


@pytest.mark.parametrize("kind", ["exported_full", "exported_frozen"])
def test_the_served_model_answers_as_the_trained_one(kind: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(kind)
    served = OnnxClassifier(exported.artifact, exported.runtime, OnnxBackend(exported.runtime / ONNX, 1))
    logits = served.logits(served.tokenize(TEXTS))
    np.testing.assert_allclose(logits, trained_logits(exported.prepared, TEXTS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["exported_full", "exported_frozen"])
def test_the_onnx_file_takes_the_described_inputs_as_int64_of_any_shape(
    kind: str, request: pytest.FixtureRequest
) -> None:
    exported: Exported = request.getfixturevalue(kind)
    session = open_session(exported.runtime / ONNX, 1)
    described = read_description(exported.artifact).inputs
    assert described == ["input_ids", "attention_mask", "token_type_ids"]
    assert [given.name for given in session.get_inputs()] == described
    assert {given.type for given in session.get_inputs()} == {"tensor(int64)"}
    for shape in ((1, 1), (3, 7), (9, 32)):
        (answer,) = session.run(None, {name: np.ones(shape, np.int64) for name in described})
        assert len(answer) == shape[0]


def test_a_whole_classifier_names_its_output_as_other_tools_expect(exported_full: Exported) -> None:
    session = open_session(exported_full.artifact / ONNX, 1)
    assert [output.name for output in session.get_outputs()] == ["logits"]


@pytest.mark.parametrize("kind", ["exported_full", "exported_frozen"])
def test_the_artifact_verifies_and_describes_itself(kind: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(kind)
    assert verify_folder(exported.artifact)["kind"] == "artifact"
    described = read_description(exported.artifact)
    assert described.task == exported.fitted.state
    assert described.task.labels == LABELS
    assert (described.task.type, described.task.reading, described.max_length) == (
        *("text_classification", "softmax"),
        32,
    )
    assert (described.base_model, described.base_sha256) == ("tiny", base_sha256(exported.prepared.base))
    assert described.spec == exported.prepared.spec.model_dump()
    assert described.dataset_sha256 == "0" * 64
    assert described.train_rows == sum(exported.prepared.resolved.train_counts.values()) == 48
    assert set(described.metrics) == {"validation", "test"}
    assert set(described.report["labels"]) == set(LABELS)
    assert described.report["part"] == "test"
    assert len(described.probe.logits) == len(PROBE_TEXTS)
    is_full = kind == "exported_full"
    assert (described.head, described.loads_in_transformers) == ("native" if is_full else "linear", is_full)


def test_a_frozen_artifact_holds_the_head_and_leaves_the_encoder_beside_it(exported_frozen: Exported) -> None:
    assert set(read_manifest(exported_frozen.artifact)["files"]) == {HEAD, "minimand.json"}
    head = load_file(exported_frozen.artifact / HEAD)
    trained = exported_frozen.prepared.network.head
    assert torch.equal(head["weight"], trained.weight)
    assert torch.equal(head["bias"], trained.bias)
    manifest = verify_folder(exported_frozen.run.base)
    assert manifest["base_sha256"] == exported_frozen.prepared.base_sha256
    assert {ONNX, INT8, "tokenizer.json", "config.json"} <= set(manifest["files"])


def test_every_head_over_one_encoder_finds_the_same_base_folder(
    exported_frozen: Exported, tmp_path: Path, tiny_base: Path
) -> None:
    run = lay_out(
        tmp_path, rows=learnable_rows(30, seed=5), tuning={"type": "frozen"}, training={"seed": 3, "max_length": 16}
    )
    export(run, prepare_run(run, tiny_base))
    assert manifest_sha256(run.base) == manifest_sha256(exported_frozen.run.base)


def test_exporting_again_replaces_what_was_there(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path, training={"epochs": 1})
    run.artifact.mkdir()
    (run.artifact / "left over").write_text("from a run that was killed")
    export(run, prepare_run(run, tiny_base))
    assert not (run.artifact / "left over").exists()
    verify_folder(run.artifact)


def test_a_frozen_minilm_of_sixteen_labels_fits_in_fifty_kilobytes(tmp_path: Path) -> None:
    rows = [(f"{text} {i}", f"a rather long label {i % 16}") for i, (text, _) in enumerate(learnable_rows(160))]
    training = {"epochs": 1, "max_length": 16}
    run = lay_out(tmp_path, rows=rows, model=DEFAULT_BASE, tuning={"type": "frozen"}, training=training)
    exported = export(run, prepare_run(run, find_base(DEFAULT_BASE, {})))
    size = folder_bytes(verify_folder(run.artifact)) + (run.artifact / MANIFEST).stat().st_size
    assert size <= 50 * 1024
    served = OnnxClassifier(run.artifact, run.base, OnnxBackend(run.base / ONNX, 1))
    texts = ["hello", "where is my parcel?"]
    np.testing.assert_allclose(
        served.logits(served.tokenize(texts)), trained_logits(exported.prepared, texts), atol=1e-4
    )


def test_the_file_holds_nothing_that_a_mask_of_padding_does_not_need(exported_full: Exported) -> None:
    operators = {node.op_type for node in onnx.load(str(exported_full.artifact / ONNX)).graph.node}
    assert operators >= {"Softmax", "LayerNormalization"}
    assert not operators & {"IsNaN", "Expand", "Range", "And", "GreaterOrEqual"}
