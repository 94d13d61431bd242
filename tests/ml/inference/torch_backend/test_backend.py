"""Models answer by torch as they do by onnxruntime. On a CPU it computes in float32, and a GPU is asked where there is
one.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml.artifact.description import ONNX, read_description
from ml.inference.backends import EngineError, OnnxBackend, OnnxEngine, open_engine
from ml.inference.cache import ModelCache
from ml.inference.classifier import OnnxClassifier, WrongAnswersError, load_classifier
from ml.inference.scheduler import Scheduler
from ml.inference.shared import Shared
from ml.inference.torch_backend import backend as torch_backend
from ml.inference.torch_backend.backend import TorchBackend, TorchEngine
from tests.ml.conftest import Exported
from tests.ml.inference.torch_backend.test_program import small_file
from tests.tiny_base import learnable_rows

TEXTS = [text for text, _ in learnable_rows(12, seed=3)] + ["hello", "money back " * 40]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


def load(exported: Exported, engine: Any) -> OnnxClassifier:
    return ModelCache(10**9, engine).get("mdl_1", lambda: (exported.artifact, exported.runtime))


@pytest.fixture(params=["exported_full", "exported_frozen"])
def exported(request: pytest.FixtureRequest) -> Exported:
    model: Exported = request.getfixturevalue(request.param)
    return model


@pytest.mark.parametrize("device", DEVICES)
def test_models_answer_as_by_onnxruntime_in_passes_of_any_size(exported: Exported, device: str) -> None:
    exact, served = load(exported, OnnxEngine(1)), load(exported, TorchEngine(device, 1))
    assert isinstance(served.session, TorchBackend)
    encodings = exact.tokenize(TEXTS)
    tolerance = 1e-5 if device == "cpu" else 0.05
    for rows in (1, 2, 3, 5, 14):
        for start in range(0, len(TEXTS), rows):  # by one program after the other, and again by each
            batch = encodings[start : start + rows]
            found, wanted = served.encode(batch), exact.encode(batch)
            assert found.shape == wanted.shape
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


def test_rows_and_lengths_are_rounded_up_so_that_programs_are_few(exported_full: Exported) -> None:
    served = load(exported_full, TorchEngine("cpu", 1))
    session, seen = served.session, set()
    assert isinstance(session, TorchBackend)
    program = session._program
    session._program = lambda inputs: seen.add(tuple(inputs["input_ids"].shape)) or program(inputs)  # type: ignore[method-assign,func-returns-value]
    longest = served.description.max_length
    for rows in (1, 3, 4, 5):
        for text in ("hello", "money back " * 10, "money back " * 200):
            served.encode(served.tokenize([text] * rows))
    assert seen == {(rows, length) for rows in (1, 4, 8) for length in (32, longest)}


def test_programs_that_are_not_used_go(exported_full: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "PROGRAMS", 2)
    served = load(exported_full, TorchEngine("cpu", 1))
    assert isinstance(served.session, TorchBackend)
    for rows in (1, 2, 1, 4, 1, 8):
        served.encode(served.tokenize(["hello"] * rows))
    assert [shapes[0][0] for shapes in served.session._programs] == [1, 8]


def test_an_int8_model_is_served_from_its_float32_file(
    exported_full: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    opens: Callable[..., Any] = TorchEngine.open
    monkeypatch.setattr(TorchEngine, "open", lambda self, file: opened.append(file.name) or opens(self, file))  # type: ignore[func-returns-value]
    described = read_description(exported_full.artifact)
    monkeypatch.setattr("ml.inference.classifier.read_answering", lambda _: described)
    described.serving.format = "onnx-int8"
    load_classifier(exported_full.artifact, exported_full.runtime, Shared(TorchEngine("cpu", 1)))
    assert opened == [ONNX]


def in_half_precision() -> TorchEngine:
    engine = TorchEngine("cpu", 1)
    engine.dtype = torch.bfloat16
    return engine


def test_in_half_precision_scores_and_not_logits_are_held_to_the_trained_models(exported: Exported) -> None:
    exact, served = load(exported, OnnxEngine(1)), load(exported, in_half_precision())
    assert not served.session.is_exact
    encodings = served.tokenize(TEXTS)
    moved = np.abs(served.logits(encodings) - exact.logits(encodings)).max()
    assert read_description(exported.artifact).probe.tolerance < moved < 0.1


def test_a_model_whose_scores_half_precision_moves_far_is_not_served(
    exported_full: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TorchBackend.run
    monkeypatch.setattr(TorchBackend, "run", lambda self, feeds, *, alone: run(self, feeds, alone=alone)[:, ::-1])
    with pytest.raises(WrongAnswersError, match=r"differ from the trained model's in float32 by .*; at most 0\.02"):
        load(exported_full, in_half_precision())


def test_a_file_that_is_not_known_is_run_by_onnxruntime(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from onnx import helper

    file = small_file(tmp_path / "m.onnx", helper.make_node("Hardmax", ["x"], ["y"]))
    with caplog.at_level(logging.WARNING):
        assert isinstance(TorchEngine("cpu", 1).open(file), OnnxBackend)
    assert "m.onnx is run by onnxruntime, on the CPU: m.onnx has operators that are not known: Hardmax" in caplog.text


def test_passes_come_one_at_a_time_from_the_scheduler(exported_full: Exported) -> None:
    engine = TorchEngine("cpu", 1)
    served, exact = load(exported_full, engine), load(exported_full, OnnxEngine(1))
    scheduler = Scheduler(1_000, engine.passes)
    requests = [served.tokenize(TEXTS[i : i + 3]) for i in range(12)]
    futures = [scheduler.submit(served, rows) for rows in requests]
    for rows, future in zip(requests, futures, strict=True):
        np.testing.assert_allclose(future.result(30).outputs, exact.encode(rows), rtol=0, atol=1e-4)
    scheduler.close()


def test_a_gpu_that_is_not_there_is_told_of() -> None:
    with pytest.raises(EngineError, match=r"torch \S+ sees \d+ GPUs"):
        open_engine("cuda:99", 1)


def test_without_a_gpu_there_is_no_torch() -> None:
    assert isinstance(open_engine("cpu", 2), OnnxEngine)
