"""A head and its encoder in one file answer as the two did apart."""

from pathlib import Path

import numpy as np
import onnx

from ml.artifact.description import HEAD, ONNX
from ml.artifact.join import join_head
from ml.inference.backends import OnnxBackend, open_session
from ml.inference.classifier import OnnxClassifier
from tests.ml.conftest import Exported
from tests.tiny_base import learnable_rows


def test_the_joined_file_equals_the_head_over_the_encoder(exported_frozen: Exported, tmp_path: Path) -> None:
    joined = tmp_path / "model.onnx"
    join_head(exported_frozen.runtime / ONNX, exported_frozen.artifact / HEAD, joined, is_cosine=False)
    encoder = OnnxBackend(exported_frozen.runtime / ONNX, 1)
    apart = OnnxClassifier(exported_frozen.artifact, exported_frozen.runtime, encoder)
    session = open_session(joined, 1)
    assert [output.name for output in session.get_outputs()] == ["logits"]
    for text, _ in learnable_rows(9, seed=3):
        (encoding,) = apart.tokenize([text])
        feeds = {
            "input_ids": np.array([encoding.ids]),
            "attention_mask": np.array([encoding.attention_mask]),
            "token_type_ids": np.array([encoding.type_ids]),
        }
        (logits,) = session.run(None, feeds)
        np.testing.assert_allclose(logits, apart.logits([encoding]), rtol=0, atol=1e-6)


def test_the_encoder_is_left_as_it_was(exported_frozen: Exported, tmp_path: Path) -> None:
    before = (exported_frozen.runtime / ONNX).read_bytes()
    join_head(exported_frozen.runtime / ONNX, exported_frozen.artifact / HEAD, tmp_path / "model.onnx", is_cosine=False)
    assert (exported_frozen.runtime / ONNX).read_bytes() == before
    outputs = onnx.load(str(tmp_path / "model.onnx")).graph.output
    assert [d.dim_value for d in outputs[0].type.tensor_type.shape.dim] == [0, 3]  # any batch, three labels
