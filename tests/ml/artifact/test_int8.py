"""int8 answers nearly as float32 does, and the same whoever shares the batch; what onnxruntime offers does not."""

import random
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from ml.artifact.description import ONNX
from ml.artifact.int8 import Product, Scales, Seen, choose_scales, read_products, round_rows, write_int8
from ml.evaluation.scores import softmax
from ml.inference.backends import OnnxBackend, open_session
from ml.inference.classifier import OnnxClassifier
from ml.training.quantize import _look
from tests.ml.conftest import Exported, export
from tests.ml.runs import lay_out, prepare_run
from tests.shared_data import SHARED_DATA, read_shared
from tests.tiny_base import learnable_rows

# Some short, some long, and one whose tokens are unlike all others.
TEXTS = [*(text for text, _ in learnable_rows(40, seed=2)), "", "ok", "money back " * 40, "? ! - ' . ," * 5, "9 x q z"]


@pytest.fixture(scope="module", params=["fixed", "by token", "both"])
def int8_file(
    exported_full: Exported, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """All inputs scaled by fixed numbers, all by token, or all by fixed numbers and then by token."""
    file, source = tmp_path_factory.mktemp("int8") / "model.int8.onnx", exported_full.artifact / ONNX
    scales = dict.fromkeys((product.input for product in read_products(source)), Scales())
    if request.param != "by token":
        prepared = exported_full.prepared
        seen = _look(source, prepared.tokens, np.arange(60))
        by_token = request.param == "both"
        scales = {x: Scales(np.maximum(each.largest, 0.1) / 127, by_token) for x, each in seen.items()}
    write_int8(source, file, scales=scales)
    return file


@pytest.fixture(scope="module")
def per_tensor_file(exported_full: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As onnxruntime's own quantisation makes it: one scale for a whole batch's activations."""
    file = tmp_path_factory.mktemp("per-tensor") / "model.onnx"
    quantize_dynamic(exported_full.artifact / ONNX, file, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    return file


def answers_by(exported: Exported, file: Path) -> Callable[[list[str]], np.ndarray]:
    """Probabilities of texts that share a batch."""
    plain = OnnxClassifier(exported.artifact, exported.artifact, OnnxBackend(exported.artifact / ONNX, 1))
    plain.session = OnnxBackend(file, 1)
    return lambda texts: softmax(plain.logits(plain.tokenize(texts)))


def largest_move(answer: Callable[[list[str]], np.ndarray], texts: Sequence[str] = TEXTS) -> float:
    """How far a probability goes from what it is alone, over 20 random batches."""
    alone = {text: answer([text])[0] for text in texts}
    chance = random.Random(4)
    worst = 0.0
    for _ in range(20):
        company = chance.sample(texts, k=chance.randint(2, len(texts)))
        for text, together in zip(company, answer(company), strict=True):
            worst = max(worst, float(np.abs(together - alone[text]).max()))
    return worst


def test_an_int8_answer_does_not_depend_on_who_shares_the_batch(exported_full: Exported, int8_file: Path) -> None:
    assert largest_move(answers_by(exported_full, int8_file)) < 1e-3


def test_an_answer_of_one_scale_a_batch_does(exported_full: Exported, per_tensor_file: Path) -> None:
    assert largest_move(answers_by(exported_full, per_tensor_file)) > 5e-3


@pytest.mark.proof
@pytest.mark.data
@pytest.mark.skipif(not (SHARED_DATA / "trec").is_dir(), reason="the questions are not there")
def test_nor_does_an_answer_of_minilm_to_real_questions(tmp_path: Path, tiny_base: Path) -> None:
    rows = [(row["text"], row["label"]) for row in islice(read_shared("trec"), 700)]
    training = {"epochs": 2, "batch_size": 16, "optimizer": {"type": "adamw", "learning_rate": 3e-4}}
    run = lay_out(tmp_path / "run", rows=rows[:640], model="minilm", training=training)
    exported = export(run, prepare_run(run, tiny_base))
    source, questions = run.artifact / ONNX, [text for text, _ in rows[640:]]
    seen = _look(source, exported.prepared.tokens, np.arange(256))
    products: dict[str, list[Product]] = {}
    for product in read_products(source):
        products.setdefault(product.input, []).append(product)
    file, per_tensor = tmp_path / "int8.onnx", tmp_path / "per-tensor.onnx"
    write_int8(source, file, scales={x: choose_scales(those, seen[x]) for x, those in products.items()})
    quantize_dynamic(source, per_tensor, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    assert largest_move(answers_by(exported, file), questions) < 1e-3
    assert largest_move(answers_by(exported, per_tensor), questions) > 5e-3, "these texts tell nothing"


def test_int8_answers_nearly_as_float32_does(exported_full: Exported, int8_file: Path) -> None:
    exact = answers_by(exported_full, exported_full.artifact / ONNX)(TEXTS)
    moves = np.abs(answers_by(exported_full, int8_file)(TEXTS) - exact).max(-1)
    assert 0 < moves.mean() < 0.01


def test_no_optimizer_of_onnxruntime_changes_what_the_int8_file_answers(int8_file: Path) -> None:
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(int8_file), plain, providers=["CPUExecutionProvider"])
    feeds = {given.name: np.arange(12).reshape(3, 4) % 2 + 5 for given in session.get_inputs()[:1]}
    feeds |= {given.name: np.ones((3, 4), np.int64) for given in session.get_inputs()[1:2]}
    feeds |= {given.name: np.zeros((3, 4), np.int64) for given in session.get_inputs()[2:]}
    (optimised,) = open_session(int8_file, 1).run(None, feeds)
    np.testing.assert_allclose(optimised, session.run(None, feeds)[0], rtol=0, atol=1e-4)


def test_kept_products_stay_as_they_are(exported_full: Exported, tmp_path: Path) -> None:
    source = exported_full.artifact / ONNX
    products = read_products(source)
    names = [product.name for product in products]
    by_token = dict.fromkeys((product.input for product in products), Scales())
    assert len(names) == len(set(names)) == 12  # two layers of six
    write_int8(source, tmp_path / "some.onnx", scales=by_token, kept=names[:5])
    assert [product.name for product in read_products(tmp_path / "some.onnx")] == names[:5]
    counts = [node.op_type for node in onnx.load(str(tmp_path / "some.onnx")).graph.node].count("MatMulIntegerToFloat")
    assert counts == 7
    write_int8(source, tmp_path / "none.onnx", scales=by_token, kept=names)
    feeds = {name: np.ones((2, 3), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for expected, answer in zip(
        open_session(source, 1).run(None, feeds), open_session(tmp_path / "none.onnx", 1).run(None, feeds), strict=True
    ):
        assert np.array_equal(expected, answer)


def test_a_row_is_rounded_to_its_own_largest() -> None:
    rounded, scales = round_rows(np.array([[1.0, -2.0, 0.004], [0, 0, 0], [50, 100, 0]], np.float32))
    assert rounded.tolist() == [[64, -127, 0], [0, 0, 0], [64, 127, 0]]
    assert scales[[0, 2]] * 127 == pytest.approx([2, 100])


def seen_of(tokens: np.ndarray) -> Seen:
    return Seen(np.abs(tokens).max(0), tokens)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_token_bears_no_channel_that_dwarfs_the_others_and_fixed_scales_do() -> None:
    even, weight = draw(0, 200, 16), draw(1, 16, 8)
    dwarfed = even.copy()
    dwarfed[:, 3] *= 1000
    weight[3] /= 1000  # what dwarfs the others doesn't show in the product
    product = Product("layer", "x", weight)
    assert product.rounding_error(even, Scales()) < 0.02
    assert product.rounding_error(dwarfed, Scales()) > 0.5
    for may_be_fixed in (True, False):
        scales = choose_scales([product], seen_of(dwarfed), may_be_fixed=may_be_fixed)
        assert scales.channels is not None
        assert scales.by_token is not may_be_fixed
        assert product.rounding_error(dwarfed, scales) < 0.02


def test_tokens_of_unlike_sizes_are_scaled_each_by_itself() -> None:
    tokens = draw(0, 200, 16) * np.geomspace(0.01, 1, 200, dtype=np.float32)[:, None]
    tokens[-1] *= 100
    assert choose_scales([Product("layer", "x", draw(1, 16, 8))], seen_of(tokens)).by_token


def test_a_token_larger_than_any_that_was_seen_is_cut_off_by_fixed_scales_alone() -> None:
    product, tokens = Product("layer", "x", draw(1, 16, 8)), draw(0, 200, 16)
    fixed, own = (choose_scales([product], seen_of(tokens), may_be_fixed=may) for may in (True, False))
    assert (fixed.by_token, own.by_token) == (False, True)
    assert product.rounding_error(10 * tokens, fixed) > 0.5
    assert product.rounding_error(10 * tokens, own) < 0.02


def test_products_of_one_input_share_its_scales() -> None:
    seen, one, other = (
        seen_of(draw(0, 200, 16)),
        Product("one", "x", draw(1, 16, 8)),
        Product("other", "x", draw(2, 16, 8)),
    )
    scales = choose_scales([one, other], seen)
    assert scales.channels is not None
    assert scales.channels.shape == (16,)
    assert np.abs(seen.tokens / scales.channels).max() == pytest.approx(127, rel=1e-4)
    assert max(product.rounding_error(seen.tokens, scales) for product in (one, other)) < 0.02


def test_an_embedding_of_many_rows_is_rounded_row_by_row(tmp_path: Path) -> None:
    weight = draw(0, 2000, 8) * np.geomspace(0.001, 10, 2000, dtype=np.float32)[:, None]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["weight", "ids"], ["y"])],
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "length", 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "float32.onnx"))
    write_int8(tmp_path / "float32.onnx", tmp_path / "int8.onnx", scales={})
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "float32.onnx").stat().st_size
    ids = np.arange(2000).reshape(4, 500)
    (y,) = open_session(tmp_path / "int8.onnx", 1).run(None, {"ids": ids})
    assert (np.abs(y - weight[ids]).max(-1) <= np.abs(weight[ids]).max(-1) / 250).all()


def test_onnxruntime_still_fuses_standard_operators_with_a_scale_a_token_into_wrong_answers(tmp_path: Path) -> None:
    """Why the file holds onnxruntime's own operator; should this fail one day, the standard ones would do."""
    weight = np.eye(4, dtype=np.int8)
    nodes = [
        helper.make_node("MatMulInteger", ["x", "weight", "zero_point"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "columns"], ["scales"]),
        helper.make_node("Mul", ["floats", "scales"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["y"]),
    ]
    constants = {"weight": weight, "zero_point": np.uint8(128), "columns": np.ones(4, np.float32)}
    constants["bias"] = np.full(4, 100, np.float32)
    graph = helper.make_graph(
        nodes,
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", 4]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["rows", 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    file = tmp_path / "scaled.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    feeds = {"x": np.full((2, 4), 129, np.uint8), "scale": np.array([[1.0], [5.0]], np.float32)}
    careful = onnxruntime.InferenceSession(str(file), disabled_optimizers=["MatMulIntegerToFloatFusion"])
    np.testing.assert_array_equal(careful.run(None, feeds)[0], [[101] * 4, [105] * 4])
    (wrong,) = open_session(file, 1).run(None, feeds)
    np.testing.assert_array_equal(wrong, [[101] * 4, [505] * 4])  # the bias was scaled as well
