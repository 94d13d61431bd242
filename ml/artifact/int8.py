"""int8 matrix products in an ONNX file, scaled so that no answer depends on its batch. Torch-free.

A layer's x · W, x (…, K) and W (K, N), becomes Q(x / s) · Q(W · s), each rounded to integers of 8 bits. W's columns are
scaled by their largest values. x is scaled by numbers that are fixed, one a channel (…, K), which take from channels of
large values what W's rows then bear (Xiao et al. 2023, SmoothQuant); and, where that alone rounds worse, by the largest
value of each token as well (Dettmers et al. 2022). What follows (bias, activation, norm) stays in float32. The rows of
large embeddings are scaled by themselves. It knows no task, and not whether the answers are good enough.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CONTRIBUTED = "com.microsoft"  # onnxruntime's own operators
_LEAST_SCALE = 1e-9  # of a token or column that is all zeros
_LEAST_LARGEST = 1e-5  # of a channel that was never seen to differ from zero

# How much of the difference between channels W bears: all of it at 1. Which is best differs by layer; on MiniLM 0.8 is
# where norms are read, less or more elsewhere.
_SHARES = (0.6, 0.8, 1.0)
# The same where each token has a scale of its own, beside that W as it is.
_SHARES_BY_TOKEN = (0.3, 0.5, 0.7)
# Fixed scales are taken where their error is no more than this many times that of a scale a token: they save eight
# passes over the tokens, a sixth of MiniLM's time.
_WORSE = 1.5
# Embeddings of fewer rows are not worth it.
_LARGE_EMBEDDING = 1000


@dataclass(frozen=True)
class Scales:
    """What an input x (…, K) is divided by before it is rounded."""

    channels: NDArray[np.float32] | None = None  # (K,), fixed; W's rows are multiplied by them
    by_token: bool = True  # and then by a 127th of the largest value of each token

    def taken_by(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """W (K, N) as it is where x is divided."""
        return weight if self.channels is None else weight * self.channels[:, None]


@dataclass(frozen=True)
class Product:
    """One layer's x · W."""

    name: str  # of its node
    input: str  # the tensor x (…, K)
    weight: NDArray[np.float32]  # W (K, N)

    def rounding_error(self, x: NDArray[np.float32], scales: Scales) -> float:
        """How far int8 takes the product from what it is for these x (T, K), as a share of its length."""
        exact = x @ self.weight
        divided = x if scales.channels is None else x / scales.channels
        if scales.by_token:
            rounded, own = round_rows(divided)
            rows = rounded.astype(np.float32) * own[:, None]
        else:
            rows = np.clip(np.rint(divided), -128, 127)
        columns, sizes = round_rows(scales.taken_by(self.weight).T)
        error = rows @ columns.T.astype(np.float32) * sizes - exact
        return float(np.linalg.norm(error)) / max(float(np.linalg.norm(exact)), _LEAST_SCALE)


@dataclass(frozen=True)
class Seen:
    """What one input of products was seen to be, over some texts."""

    largest: NDArray[np.float32]  # |x| of each channel (K,)
    tokens: NDArray[np.float32]  # some of them (T, K)


def choose_scales(products: Sequence[Product], seen: Seen, *, may_be_fixed: bool = True) -> Scales:
    """How to scale an input that these products read.

    may_be_fixed: a token may go without a scale of its own. Values larger than were seen are then cut off.
    """
    weight = np.concatenate([product.weight for product in products], axis=1)
    whole = Product("", "", weight)
    heaviest = np.maximum(np.abs(weight).max(1), _LEAST_LARGEST)
    largest = np.maximum(seen.largest, _LEAST_LARGEST)

    def divided(share: float, *, by_token: bool) -> Scales:
        channels = largest**share / heaviest ** (1 - share)
        return Scales((channels * (largest / channels).max() / 127).astype(np.float32), by_token)

    def error(scales: Scales) -> float:
        return whole.rounding_error(seen.tokens, scales)

    plain = Scales()
    if may_be_fixed:
        fixed = min((divided(share, by_token=False) for share in _SHARES), key=error)
        if error(fixed) <= _WORSE * error(plain):
            return fixed
    return min((plain, *(divided(share, by_token=True) for share in _SHARES_BY_TOKEN)), key=error)


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


def write_int8(source: Path, target: Path, *, scales: Mapping[str, Scales], kept: Collection[str] = ()) -> None:
    """Write `target`: the graph of `source` with its products in int8.

    scales: of each input, by name, see `choose_scales`. kept: names of products that stay in float32.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    products = {product.name: product for product in _products(graph) if product.name not in kept}
    large = {tensor.name: tensor for tensor in graph.initializer if _is_large(tensor)}
    writer = _Writer()
    for node in graph.node:
        product = products.get(node.name)
        if product is not None:
            writer.add_product(product, node.input[1], node.output[0], scales[product.input])
        elif node.op_type == "Gather" and node.input[0] in large:
            writer.add_embedding(numpy_helper.to_array(large[node.input[0]]), node)
        else:
            writer.nodes.append(node)
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

    def add_product(self, product: Product, weight_name: str, output: str, scales: Scales) -> None:
        x = product.input
        if x not in self._rounded:  # queries, keys and values read the same tokens
            self._rounded.add(x)
            self._round(x, scales)
        columns, sizes = round_rows(scales.taken_by(product.weight).T)
        self.add(
            # Its scale of x is 1 here, and a token's own follows. Of the standard MatMulInteger, Cast and Mul
            # onnxruntime makes this very operator, and takes the bias that follows into it, to be scaled as well.
            *("MatMulIntegerToFloat", f"{output}.sums" if scales.by_token else output),
            f"{x}.int8",
            self.constant(f"{weight_name}.int8", np.ascontiguousarray(columns.T)),
            self.constant("int8.one", np.float32(1)),
            self.constant(f"{weight_name}.scale", sizes),
            self.constant("int8.zero_point", np.uint8(128)),
            domain=_CONTRIBUTED,
        )
        if scales.by_token:
            self.add("Mul", output, f"{output}.sums", f"{x}.scale")

    def add_embedding(self, weight: NDArray[np.float32], node: Any) -> None:
        name, ids, output = node.input[0], node.input[1], node.output[0]
        rows, scales = round_rows(weight)
        self.add("Gather", f"{output}.int8", self.constant(f"{name}.int8", rows), ids)
        self.add("Gather", f"{output}.scale", self.constant(f"{name}.scale", scales[:, None]), ids)
        self.add("Cast", f"{output}.float", f"{output}.int8", to=1)
        self.add("Mul", output, f"{output}.float", f"{output}.scale")

    def _round(self, x: str, scales: Scales) -> None:
        """{x}.int8 = round(x / scales) + 128 as uint8; and, where tokens have scales, these: {x}.scale (…, 1)."""
        scaled = x
        if scales.channels is not None:
            scaled = f"{x}.divided"
            self.add("Mul", scaled, x, self.constant(f"{x}.channels", 1 / scales.channels))
        if scales.by_token:
            self.add("Abs", f"{x}.sizes", scaled)
            self.add("ReduceMax", f"{x}.largest", f"{x}.sizes", axes=[-1], keepdims=1)
            least = self.constant("int8.least", np.float32(127 * _LEAST_SCALE))
            self.add("Max", f"{x}.size", f"{x}.largest", least)
            self.add("Mul", f"{x}.scale", f"{x}.size", self.constant("int8.step", np.float32(1 / 127)))
            self.add("Div", f"{x}.inverse", self.constant("int8.most", np.float32(127)), f"{x}.size")
            self.add("Mul", f"{x}.scaled", scaled, f"{x}.inverse")
            scaled = f"{x}.scaled"
        one, zero_point = self.constant("int8.one", np.float32(1)), self.constant("int8.zero_point", np.uint8(128))
        self.add("QuantizeLinear", f"{x}.int8", scaled, one, zero_point)

    def add(self, operator: str, output: str, *inputs: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _is_large(tensor: Any) -> bool:
    return len(tensor.dims) == 2 and tensor.dims[0] >= _LARGE_EMBEDDING and tensor.data_type == 1


def _products(graph: Any) -> list[Product]:
    from onnx import numpy_helper

    fixed = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    return [
        Product(node.name, node.input[0], numpy_helper.to_array(fixed[node.input[1]]))
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in fixed
    ]
