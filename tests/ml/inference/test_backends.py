"""A pass alone may take every core, and answers as one that does not; two sessions only where that is faster."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from ml.artifact.description import ONNX
from ml.inference.backends import OnnxBackend
from tests.ml.conftest import Exported

FEEDS = {
    "input_ids": np.arange(40).reshape(4, 10) % 9,
    "attention_mask": np.ones((4, 10), np.int64),
    "token_type_ids": np.zeros((4, 10), np.int64),
}


def with_times(monkeypatch: pytest.MonkeyPatch, *, narrow: float, wide: float) -> None:
    def seconds(_backend: OnnxBackend, session: onnxruntime.InferenceSession) -> float:
        return narrow if session.get_session_options().intra_op_num_threads == 1 else wide

    monkeypatch.setattr(OnnxBackend, "_seconds", seconds)


@pytest.mark.parametrize(("wide", "is_kept"), [(0.7, True), (0.9, False), (2.0, False)])
def test_a_session_of_every_core_is_kept_where_it_is_faster(
    exported_full: Exported, monkeypatch: pytest.MonkeyPatch, wide: float, is_kept: bool
) -> None:
    with_times(monkeypatch, narrow=1.0, wide=wide)
    backend = OnnxBackend(exported_full.artifact / ONNX, 2)
    assert (backend._wide is not backend._narrow) == is_kept


def test_there_is_one_session_for_one_thread(exported_full: Exported) -> None:
    backend = OnnxBackend(exported_full.artifact / ONNX, 1)
    assert backend._wide is backend._narrow
    assert backend._narrow.get_session_options().intra_op_num_threads == 1


def test_answers_are_the_same_alone_and_side_by_side(exported_full: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    with_times(monkeypatch, narrow=1.0, wide=0.1)
    backend = OnnxBackend(exported_full.artifact / ONNX, 2)
    assert sorted(backend.inputs) == sorted(FEEDS)
    alone = backend.run(FEEDS, alone=True)
    assert alone.dtype == np.float32
    assert alone.shape == (4, 3)
    with ThreadPoolExecutor(4) as threads:
        for together in threads.map(lambda _: backend.run(FEEDS, alone=False), range(20)):
            np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
