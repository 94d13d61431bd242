"""Which file a finished model is served from: int8 where enough texts say that it answers as float32 does."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ml.artifact.description import INT8, ONNX, PROBE_TEXTS, Serving
from ml.artifact.int8 import choose_scales, read_products
from ml.data.splits import Part
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier
from ml.tasks import agreement
from ml.training.export import prepared_probe
from ml.training.quantize import (
    _by_input,
    _drawn_rows,
    _look,
    _most_sensitive_first,
    choose_shared_format,
    write_served_format,
)
from tests.ml.conftest import Exported


@pytest.fixture
def folder(exported_full: Exported, tmp_path: Path) -> Path:
    """Of an artifact, with the float32 file alone."""
    shutil.copyfile(exported_full.artifact / ONNX, tmp_path / ONNX)
    return tmp_path


def judge(exported: Exported, folder: Path, texts: int) -> tuple[Serving, list[list[float]] | None]:
    prepared = exported.prepared
    return write_served_format(folder, prepared, exported.fitted.task, prepared_probe(prepared), texts)


def test_int8_is_served_where_it_answers_as_float32_does(exported_full: Exported, folder: Path) -> None:
    serving, probe = judge(exported_full, folder, 60)
    assert serving.format == "onnx-int8"
    assert serving.float32_layers == []
    assert serving.agreement is not None
    assert (serving.agreement.texts, serving.agreement.labelled, serving.agreement.fall) == (60, 12, None)
    assert serving.agreement.changed <= 0.02
    assert 0 < serving.agreement.moved <= 0.01
    assert np.shape(probe) == (len(PROBE_TEXTS), 3)
    assert (folder / INT8).exists()


def test_a_dataset_of_too_few_texts_is_served_in_float32(exported_full: Exported, folder: Path) -> None:
    serving, probe = judge(exported_full, folder, 61)
    assert (serving.format, probe) == ("onnx-float32", None)
    assert serving.reason == "int8 is judged by 61 texts, and the dataset has 60"
    assert not (folder / INT8).exists()


def test_int8_that_changes_too_much_is_dropped_and_the_reason_says_by_how_much(
    exported_full: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "MOST_MOVED", 1e-9)
    serving, probe = judge(exported_full, folder, 60)
    assert (serving.format, probe) == ("onnx-float32", None)
    assert "scores moved by" in serving.reason
    assert "6 of 12 layers left in float32" in serving.reason
    assert serving.agreement is not None
    assert [file.name for file in folder.iterdir()] == [ONNX]


def test_layers_go_back_to_float32_until_the_answers_agree(
    exported_full: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = judge(exported_full, folder, 60)
    assert whole.agreement is not None
    monkeypatch.setattr(agreement, "MOST_MOVED", whole.agreement.moved * 0.99)
    serving, _ = judge(exported_full, folder, 60)
    assert serving.format == "onnx-int8"
    assert serving.agreement is not None
    assert serving.agreement.moved < whole.agreement.moved
    products = read_products(folder / ONNX)
    prepared = exported_full.prepared
    seen = _look(folder / ONNX, prepared.tokens, _drawn_rows(prepared))
    scales = {x: choose_scales(those, seen[x]) for x, those in _by_input(products).items()}
    order = _most_sensitive_first(products, seen, scales)
    assert serving.float32_layers == order[: len(serving.float32_layers)]
    assert set(order) == {product.name for product in products}


def judge_head(
    exported: Exported, texts: int, read: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[Serving, list[list[float]] | None]:
    """How a head is served over the encoder that it shares."""
    prepared = exported.prepared
    exact = OnnxClassifier(exported.artifact, exported.run.base, OnnxBackend(exported.run.base / ONNX, 1))
    exact.read = read or exact.read  # type: ignore[method-assign]
    return choose_shared_format(
        *(exported.run.base, exact, prepared, exported.fitted.task, prepared_probe(prepared), texts)
    )


def test_a_head_is_served_over_its_encoder_in_int8_where_it_answers_the_same(exported_frozen: Exported) -> None:
    serving, probe = judge_head(exported_frozen, 60)
    assert serving.format == "onnx-int8"
    assert serving.agreement is not None
    assert serving.agreement.texts == 60
    assert np.shape(probe) == (len(PROBE_TEXTS), 3)
    short, none = judge_head(exported_frozen, 61)
    assert (short.format, none) == ("onnx-float32", None)


def test_a_head_that_int8_changes_is_served_in_float32_and_the_shared_file_stays(exported_frozen: Exported) -> None:
    weight = np.random.default_rng(0).normal(size=(32, 3)) * 300  # it blows up the smallest differences

    def read(vectors: np.ndarray) -> np.ndarray:
        return np.asarray((vectors - vectors.mean(0)) @ weight, np.float32)

    serving, probe = judge_head(exported_frozen, 60, read)
    assert (serving.format, probe) == ("onnx-float32", None)
    assert serving.reason.startswith("in int8 ")
    assert (exported_frozen.run.base / INT8).exists()


def test_held_out_texts_decide_first(exported_full: Exported) -> None:
    prepared = exported_full.prepared
    parts = [Part(part) for part in prepared.resolved.parts[_drawn_rows(prepared)[:20]]]
    assert parts == [Part.TEST] * 6 + [Part.VALIDATION] * 6 + [Part.TRAIN] * 8
    assert sorted(_drawn_rows(prepared).tolist()) == list(range(60))
