"""int8 matrix products in an ONNX file, each token scaled by itself: no answer depends on its batch. Torch-free.

A layer's x · W, x (…, K) and W (K, N), becomes s(x) · (Q(x) · Q(W)) · s(W): s(x) = max|x| / 127 of each token, s(W) the
same of each of W's columns, Q(x) = round(x / s(x)). What follows (bias, activation, norm) stays in float32. Dettmers et
al. 2022 call it vector-wise quantisation. It knows no task, and not whether the answers are good enough.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CONTRIBUTED = "com.microsoft"  # onnxruntime's own operators
_LEAST_SCALE = 1e-9  # of a token or column that is all zeros


@dataclass(frozen=True)
class Product:
    """One layer's x · W."""

    name: str  # of its node
    input: str  # the tensor x (…, K)
    weight: NDArray[np.float32]  # W (K, N)

    def rounding_error(self, x: NDArray[np.float32]) -> float:
        """How far int8 takes the product from what it is for these x (T, K), as a share of its length."""
        (rounded, scales), (weight, columns) = round_rows(x), round_rows(self.weight.T)
        exact = x @ self.weight
        error = rounded.astype(np.float32) @ weight.T.astype(np.float32) * scales[:, None] * columns - exact
        return float(np.linalg.norm(error)) / max(float(np.linalg.norm(exact)), _LEAST_SCALE)


def round_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(R, K) to integers from −127 to 127 and the scale of each row (R,)."""
    scales = np.maximum(np.abs(rows).max(1) / 127, _LEAST_SCALE).astype(np.float32)
    return np.rint(rows / scales[:, None]).astype(np.int8), scales


def read_products(file: Path) -> list[Product]:
    """The products with fixed weights over tokens, in the graph's order; those over whole texts take no time."""
    import onnx

    return _products(onnx.load(str(file)).graph)


def expose_inputs(source: Path, target: Path) -> None:
    """Write `target`: the same graph, whose outputs are the inputs of its products, each once."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(source))
    names = dict.fromkeys(product.input for product in _products(model.graph))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    onnx.save(model, str(target))


def write_int8(source: Path, target: Path, *, kept: Collection[str]) -> None:
    """Write `target`: the graph of `source` with its products in int8. kept: names of those that stay in float32."""
    import onnx
    from onnx import helper

    model = onnx.load(str(source))
    graph = model.graph
    products = {product.name: product for product in _products(graph) if product.name not in kept}
    writer = _Writer()
    for node in graph.node:
        product = products.get(node.name)
        if product is None:
            writer.nodes.append(node)
        else:
            writer.add_product(product, node.input[1], node.output[0])
    used = {name for node in writer.nodes for name in node.input}
    constants = [*graph.initializer, *writer.constants.values()]
    constants = [constant for constant in constants if constant.name in used]
    nodes = list(writer.nodes)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    model.opset_import.append(helper.make_opsetid(_CONTRIBUTED, 1))
    onnx.save(model, str(target))


class _Writer:
    """The nodes of the new graph, in order, and the constants they use."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._rounded: set[str] = set()

    def add_product(self, product: Product, weight_name: str, output: str) -> None:
        x, scale = product.input, f"{product.input}.scale"
        if x not in self._rounded:  # queries, keys and values read the same tokens
            self._round_tokens(x, scale)
        weight, columns = round_rows(product.weight.T)
        self.add(
            # Its scale of x is 1 here, and the tokens' own follow. Of the standard MatMulInteger, Cast and Mul
            # onnxruntime makes this very operator, and takes the bias that follows into it, to be scaled as well.
            *("MatMulIntegerToFloat", f"{output}.sums"),
            f"{x}.int8",
            self.constant(f"{weight_name}.int8", np.ascontiguousarray(weight.T)),
            self.constant("int8.one", np.float32(1)),
            self.constant(f"{weight_name}.scale", columns),
            self.constant("int8.zero_point", np.uint8(128)),
            domain=_CONTRIBUTED,
        )
        self.add("Mul", output, f"{output}.sums", scale)

    def _round_tokens(self, x: str, scale: str) -> None:
        """{x}.int8 = round(x / scale) + 128 as uint8, and `scale` (…, 1)."""
        self._rounded.add(x)
        self.add("Abs", f"{x}.sizes", x)
        self.add("ReduceMax", f"{x}.largest", f"{x}.sizes", axes=[-1], keepdims=1)
        least = self.constant("int8.least", np.float32(127 * _LEAST_SCALE))
        self.add("Max", f"{x}.size", f"{x}.largest", least)
        self.add("Mul", scale, f"{x}.size", self.constant("int8.step", np.float32(1 / 127)))
        self.add("Div", f"{x}.inverse", self.constant("int8.most", np.float32(127)), f"{x}.size")
        self.add("Mul", f"{x}.scaled", x, f"{x}.inverse")
        self.add("Add", f"{x}.raised", f"{x}.scaled", self.constant("int8.raise", np.float32(128.5)))  # a cast cuts off
        self.add("Cast", f"{x}.int8", f"{x}.raised", to=2)

    def add(self, operator: str, output: str, *inputs: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _products(graph: Any) -> list[Product]:
    from onnx import numpy_helper

    fixed = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    return [
        Product(node.name, node.input[0], numpy_helper.to_array(fixed[node.input[1]]))
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in fixed
    ]
