"""A program answers as onnxruntime does by the same file, for encoders of every family, whatever its inputs hold."""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import DebertaV2Config, DebertaV2Model, MPNetConfig, MPNetModel

from ml.inference.torch_backend.fusion import attend, linear
from ml.inference.torch_backend.operators import softmax
from ml.inference.torch_backend.program import Network, UnknownOperatorError
from ml.models.classifier import load_encoder, load_native
from tests.ml.models.test_families import MODELS, PAD, USUAL, WORDS

CPU = torch.device("cpu")
FAMILIES: dict[str, Any] = {
    **MODELS,
    "deberta-v2": lambda: DebertaV2Model(
        DebertaV2Config(
            **USUAL,
            intermediate_size=64,
            max_position_embeddings=66,
            type_vocab_size=0,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            share_att_key=True,
        )
    ),
    "mpnet": lambda: MPNetModel(MPNetConfig(**USUAL, intermediate_size=64, max_position_embeddings=66)),
}


class Traceable(torch.nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        answer = self.network(input_ids=input_ids, attention_mask=attention_mask)
        return getattr(answer, "logits", answer)


def write(network: Any, file: Path) -> Path:
    """As `ml.training.export` does."""
    names = ["input_ids", "attention_mask"]
    axes: dict[str, Any] = {name: {0: "batch", 1: "length"} for name in names} | {"outputs": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Traceable(network).eval(),
            tuple(torch.ones(2, 9, dtype=torch.long) for _ in names),
            str(file),
            input_names=names,
            output_names=["outputs"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    return file


@pytest.fixture(scope="module", params=FAMILIES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Of one family: a classifier, whose answers are not all alike, and an encoder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    FAMILIES[request.param]().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    native = load_native(folder, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    yield [write(native, folder / "native.onnx"), write(load_encoder(folder), folder / "encoder.onnx")]


def texts(rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """The last of them is half as long."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[-1, length // 2 :], mask[-1, length // 2 :] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def expected(file: Path, inputs: dict[str, torch.Tensor]) -> Any:
    session = onnxruntime.InferenceSession(str(file))
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def module_of(program: Any) -> Any:
    (module,) = (cell.cell_contents for cell in program.__closure__ if isinstance(cell.cell_contents, torch.nn.Module))
    return module


def operators(program: Any) -> Counter[Any]:
    return Counter(node.target for node in module_of(program).graph.nodes if node.op.startswith("call"))


def test_every_family_answers_as_by_onnxruntime(files: list[Path]) -> None:
    for file in files:
        network = Network(file)
        for rows, length in ((1, 5), (3, 14)):
            program = network.program(texts(rows, length, seed=0))
            for seed in (1, 2):  # other texts than it was made with
                inputs = texts(rows, length, seed)
                np.testing.assert_allclose(program(**inputs), expected(file, inputs), rtol=0, atol=1e-5)


def test_half_precision_comes_near_it_and_padding_makes_no_nan(files: list[Path]) -> None:
    for file in files:
        inputs = texts(4, 14, seed=1)
        for dtype in (torch.bfloat16, torch.float16):
            network = Network(file)
            network.move(CPU, dtype)
            outputs = network.program(inputs)(**inputs)
            assert outputs.dtype == torch.float32
            exact = expected(file, inputs)
            assert np.abs(outputs.numpy() - exact).max() < 0.03 * max(1.0, np.abs(exact).max())


def test_attention_and_activations_are_put_together_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MODELS["roberta"]().save_pretrained(tmp_path)
    for network in (
        load_native(tmp_path, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0),
        load_encoder(tmp_path),
    ):
        found = operators(Network(write(network, tmp_path / "m.onnx")).program(texts(2, 6, seed=0)))
        assert found[attend] == found[torch.nn.functional.gelu] == 2
        assert found[linear] == 2 * 6
        assert not {softmax, torch.matmul, torch.erf, torch.isnan} & found.keys()


def test_what_follows_from_shapes_alone_is_no_part_of_a_program(files: list[Path]) -> None:
    steps = onnx.load(str(files[0])).graph.node
    program = Network(files[0]).program(texts(2, 6, seed=0))
    assert sum(operators(program).values()) < len(steps) / 2


def small_file(path: Path, *nodes: Any, shape: tuple[Any, ...] = ("batch", 3), **constants: Any) -> Path:
    """x (float) and ids (int64) in, y out."""
    given = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]),
    ]
    wanted = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", given, wanted, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Shape", ["x"], ["n"], start=1), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)],
        [helper.make_node("Shape", ["x"], ["n"], end=-1), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)],
        [helper.make_node("Div", ["hundred", "below"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)],
        [helper.make_node("Div", ["below", "seven"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)],
        [helper.make_node("Pow", ["ids", "half"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=FLOAT)],
        [helper.make_node("Expand", ["x", "to"], ["y"])],
    ],
    ids=lambda nodes: f"{nodes[0].op_type}",
)
def test_whole_numbers_and_shapes_are_what_onnxruntime_makes_of_them(tmp_path: Path, nodes: list[Any]) -> None:
    # Added to x, so that the result depends on the inputs; `below` is -ids - 7.
    nodes = [
        helper.make_node("Neg", ["ids"], ["minus"]),
        helper.make_node("Sub", ["minus", "seven"], ["below"]),
        *nodes[:-1],
        *(helper.make_node(node.op_type, node.input, ["made"], **attributes(node)) for node in nodes[-1:]),
        helper.make_node("ReduceSum", ["made"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    constants = {"hundred": 100, "seven": 7, "half": np.float32(1.5), "to": [2, 1, 1]}
    file = small_file(tmp_path / "m.onnx", *nodes, **constants)
    inputs = {"x": torch.linspace(-1, 1, 12).reshape(4, 3), "ids": torch.arange(4) + 2}
    found = Network(file).program(inputs)(**inputs).numpy()
    np.testing.assert_allclose(found, expected(file, inputs), rtol=0, atol=1e-5)


def attributes(node: Any) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.onnx", helper.make_node("Hardmax", ["x"], ["y"]))
    with pytest.raises(UnknownOperatorError, match=r"m\.onnx has operators that are not known: Hardmax"):
        Network(file)


def test_a_use_of_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.onnx", helper.make_node("CumSum", ["x", "axis"], ["y"], reverse=1), axis=1)
    with pytest.raises(UnknownOperatorError, match=r"CumSum is used in a way that is not known: .*reverse"):
        Network(file)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16),
        helper.make_node("Slice", ["x", "last", "first", "one", "back"], ["y"]),
        helper.make_node("LayerNormalization", ["x", "scale"], ["y", "mean"]),
        helper.make_node("Shape", ["x"], ["y"]),
    ],
    ids=lambda node: f"{node.op_type}",
)
def test_a_file_that_fails_its_trial_is_not_known(tmp_path: Path, node: Any) -> None:
    constants = {"last": [2], "first": [0], "one": [1], "back": [-1], "scale": np.ones(3, np.float32)}
    with pytest.raises(UnknownOperatorError, match=r"m\.onnx cannot be tried: "):
        Network(small_file(tmp_path / "m.onnx", node, **constants))


def test_operators_of_another_opset_are_not_known(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]))
    model = onnx.load(str(file))
    model.opset_import[0].version = 12
    onnx.save(model, str(file))
    with pytest.raises(UnknownOperatorError, match=r"m\.onnx has operators of opset 12, and those of 17 are known"):
        Network(file)


def test_what_is_broadcast_is_kept_once(files: list[Path]) -> None:
    """Or the indices of every head and row would be: 20 GB of DeBERTa's for 32 texts of 512 tokens."""
    network = Network(files[0])
    network.move(torch.device("meta"), torch.float32)  # a device as any other, but for what tensors hold
    kept = {id(buffer.untyped_storage()): buffer for buffer in module_of(network.program(texts(16, 32, 0))).buffers()}
    weights = {id(tensor.untyped_storage()) for tensor in network._weights.values()}
    assert sum(kept[at].untyped_storage().nbytes() for at in kept.keys() - weights) < 32 * (32 * 32 * 8)


def test_a_mask_of_half_precision_hides_as_float32s_does(tmp_path: Path) -> None:
    lowest = np.float32([[0, 0, np.finfo(np.float32).min], [np.finfo(np.float32).min] * 3])
    nodes = [helper.make_node("Add", ["x", "mask"], ["masked"]), helper.make_node("Softmax", ["masked"], ["y"])]
    file = small_file(tmp_path / "m.onnx", *nodes, shape=(2, 3), mask=lowest)
    inputs = {"x": torch.zeros(2, 3), "ids": torch.zeros(2, dtype=torch.int64)}
    for dtype in (torch.bfloat16, torch.float16):
        network = Network(file)
        network.move(CPU, dtype)
        found = network.program(inputs)(**inputs).numpy()
        np.testing.assert_allclose(found, expected(file, inputs), rtol=0, atol=0.01)


def test_a_shape_that_depends_on_what_the_inputs_hold_is_refused(tmp_path: Path) -> None:
    file = small_file(tmp_path / "m.onnx", helper.make_node("Reshape", ["x", "ids"], ["y"]))
    with pytest.raises(UnknownOperatorError, match="Reshape makes a shape of what the texts hold"):
        Network(file)


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (helper.make_node("Slice", ["x", "from", "to", "axes"], ["y"]), {"from": [-2], "to": [2**60], "axes": [1]}),
        (helper.make_node("Gather", ["x", "at"], ["y"], axis=1), {"at": [-1, 0]}),
        (helper.make_node("Gather", ["x", "at"], ["y"], axis=1), {"at": -1}),
        (helper.make_node("Gather", ["x", "at"], ["y"], axis=0), {"at": [-1]}),
        (helper.make_node("Div", ["x", "by"], ["y"]), {"by": np.float32(0.3)}),
        (helper.make_node("Pow", ["x", "by"], ["y"]), {"by": np.float32(3)}),
        (helper.make_node("Add", ["x", "by"], ["y"]), {"by": np.ones((1, 1, 1), np.float32)}),
        (helper.make_node("Where", ["of", "x", "by"], ["y"]), {"of": True, "by": np.ones((1, 1, 1), np.float32)}),
        (helper.make_node("Clip", ["x", "", "high"], ["y"]), {"high": np.float32(0.5)}),
        (helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0), {"axes": [1]}),
        (helper.make_node("ReduceSum", ["x", "axes"], ["y"], noop_with_empty_axes=1), {"axes": np.int64([])}),
        (helper.make_node("ReduceSum", ["x"], ["y"]), {}),
        (helper.make_node("ReduceL2", ["x"], ["y"], axes=[1]), {}),
        (helper.make_node("Tile", ["x", "by"], ["y"]), {"by": [1, 2]}),
        (helper.make_node("Squeeze", ["x", "axes"], ["y"]), {"axes": [1]}),
        (helper.make_node("Max", ["x", "by"], ["y"]), {"by": np.float32([0.1, 0.2, 0.3])}),
        (helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5), {"w": np.eye(3, dtype="f4"), "b": [1]}),
    ],
    ids=lambda value: f"{value.op_type}" if hasattr(value, "op_type") else "",
)
def test_an_operator_does_what_onnxruntime_does(tmp_path: Path, node: Any, constants: dict[str, Any]) -> None:
    if "b" in constants:
        constants = {**constants, "b": np.float32([1, 2, 3])}
    shape: tuple[Any, ...] = ("batch", 1) if node.op_type == "Squeeze" else ("batch", 3)
    file = small_file(tmp_path / "m.onnx", node, shape=shape, **constants)
    x = torch.linspace(-1, 1, 4 * shape[1]).reshape(4, shape[1])
    inputs = {"x": x, "ids": torch.arange(4)}
    found = Network(file).program(inputs)(**inputs).numpy()
    np.testing.assert_allclose(found, expected(file, inputs), rtol=0, atol=1e-6)
