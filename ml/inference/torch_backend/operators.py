"""What ONNX's operators are in torch: those that the exporter writes of encoders and heads, as of opset 17.

Each takes its inputs by position and its attributes by name, as ONNX calls them.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Number = int | float | bool


@dataclass(frozen=True)
class Operator:
    """An operator. lists: inputs by place that torch wants as Python's numbers, so they must be known beforehand.
    numbers: those that may be given as one number.
    """

    function: Callable[..., Any]
    lists: Sequence[int] = ()
    numbers: Sequence[int] = ()


def div(x: Tensor | Number, y: Tensor | Number) -> Any:
    """Whole numbers are cut towards zero."""
    if _is_whole(x) and _is_whole(y):
        whole: Any = torch.full_like(y, x) if isinstance(y, Tensor) and not isinstance(x, Tensor) else x
        return torch.div(whole, y, rounding_mode="trunc")
    return x / y


def _is_whole(side: Tensor | Number) -> bool:
    return not side.is_floating_point() if isinstance(side, Tensor) else isinstance(side, int)


def power(x: Tensor | Number, y: Tensor | Number) -> Any:
    """In the base's type."""
    result: Any = x**y
    return result.to(x.dtype) if isinstance(x, Tensor) else result


def reshape(x: Tensor, shape: Sequence[int], allowzero: int = 0) -> Tensor:
    """An extent of 0 stays what it is."""
    return x.reshape([x.shape[i] if not extent and not allowzero else extent for i, extent in enumerate(shape)])


def flatten(x: Tensor, axis: int = 1) -> Tensor:
    """To two dimensions."""
    return x.reshape(x.shape[:axis].numel(), -1)


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Either side may be the broader."""
    broad = [1] * (x.ndim - len(shape)) + list(shape)
    own = [1] * (len(broad) - x.ndim) + list(x.shape)
    return x.broadcast_to([wide if extent == 1 else extent for extent, wide in zip(own, broad, strict=True)])


def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """axes: places in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """All that are 1, unless axes are named."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def slices(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """One slice an axis."""
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes else i) % x.ndim
        x = x[(*[slice(None)] * axis, slice(start, end, steps[i] if steps else 1))]
    return x


def gather(x: Tensor, index: Tensor | int, axis: int = 0) -> Tensor:
    """What stands at each index of an axis."""
    if isinstance(index, int):
        return x.select(axis, index)
    axis %= x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    if x.ndim == 2 and axis == 0:
        return functional.embedding(index, x)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def gather_elements(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    """One element an index."""
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def split(x: Tensor, sizes: Sequence[int], axis: int = 0) -> Sequence[Tensor]:
    """Parts of these sizes."""
    return torch.split(x, list(sizes), axis)


def reduce_sum(
    x: Tensor, axes: Sequence[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Over all axes, unless some are named."""
    if not axes and noop_with_empty_axes:
        return x
    return x.sum(tuple(axes or range(x.ndim)), keepdim=bool(keepdims))


def reduce_mean(x: Tensor, axes: Sequence[int], keepdims: int = 1) -> Tensor:
    """Over these axes."""
    return x.mean(tuple(axes), keepdim=bool(keepdims))


def reduce_l2(x: Tensor, axes: Sequence[int], keepdims: int = 1) -> Tensor:
    """The Euclidean norm over these axes."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(axes), keepdim=bool(keepdims))
    return norm


def clip(x: Tensor, low: Number | None = None, high: Number | None = None) -> Tensor:
    """Either bound may be left out."""
    return x.clamp(low, high)


def cumulative_sum(x: Tensor, axis: int) -> Tensor:
    """Along one axis."""
    return x.cumsum(axis)


def fill(shape: Sequence[int], value: Tensor | None = None) -> Tensor:
    """The same number everywhere."""
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(list(shape))


def count(start: Number, limit: Number, delta: Number) -> Tensor:
    """Numbers in steps."""
    return torch.arange(start, limit, delta)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Over the axes from `axis` on; the sums are in float32 in any case (stash_type 1)."""
    del stash_type
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha·a·b + beta·c."""
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Along one axis."""
    return x.softmax(axis)


def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    """The axes in another order."""
    return x.permute(list(perm))


def cast(x: Tensor, to: torch.dtype) -> Tensor:
    """In another type."""
    return x.to(to)


def concat(*parts: Tensor, axis: int) -> Tensor:
    """One after the other."""
    return torch.cat(parts, axis)


def least(*of: Tensor) -> Tensor:
    """The least of each place."""
    smallest = of[0]
    for other in of[1:]:
        smallest = torch.minimum(smallest, other)
    return smallest


def greatest(*of: Tensor) -> Tensor:
    """The greatest of each place."""
    largest = of[0]
    for other in of[1:]:
        largest = torch.maximum(largest, other)
    return largest


_BINARY: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": div,
    "Pow": power,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
}
_PLAIN: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "And": torch.logical_and,
    "Cast": cast,
    "Ceil": torch.ceil,
    "Concat": concat,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Flatten": flatten,
    "GatherElements": gather_elements,
    "Gemm": gemm,
    "IsNaN": torch.isnan,
    "LayerNormalization": layer_norm,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Max": greatest,
    "Min": least,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "ReduceL2": reduce_l2,
    "ReduceMean": reduce_mean,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softmax": softmax,
    "Softplus": functional.softplus,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
    "Transpose": transpose,
}
OPERATORS: Mapping[str, Operator] = {
    **{name: Operator(function, numbers=(0, 1)) for name, function in _BINARY.items()},
    **{name: Operator(function) for name, function in _PLAIN.items()},
    "Clip": Operator(clip, numbers=(1, 2)),
    "ConstantOfShape": Operator(fill, lists=(0,)),
    "CumSum": Operator(cumulative_sum, lists=(1,)),
    "Expand": Operator(expand, lists=(1,)),
    "Gather": Operator(gather, numbers=(1,)),
    "Range": Operator(count, lists=(0, 1, 2)),
    "ReduceSum": Operator(reduce_sum, lists=(1,)),
    "Reshape": Operator(reshape, lists=(1,)),
    "Slice": Operator(slices, lists=(1, 2, 3, 4)),
    "Split": Operator(split, lists=(1,)),
    "Squeeze": Operator(squeeze, lists=(1,)),
    "Tile": Operator(torch.tile, lists=(1,)),
    "Unsqueeze": Operator(unsqueeze, lists=(1,)),
    "Where": Operator(torch.where, numbers=(1, 2)),
}
