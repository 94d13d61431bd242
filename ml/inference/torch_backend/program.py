"""An ONNX file as torch programs, one for inputs of given shapes. It knows operators, and no texts or models.

What follows from shapes alone is computed once, so that a program has only what depends on the inputs' content:
it may be captured as a CUDA graph.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from ml.inference.torch_backend.fusion import fuse
from ml.inference.torch_backend.operators import OPERATORS

Program = Callable[..., Tensor]  # takes the inputs by name

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
_CPU, _META = torch.device("cpu"), torch.device("meta")
OPSET = 17  # what is meant by an operator's name changes with it
_TRIAL_EXTENT = 2  # of whatever the shapes of a file's inputs leave open


class UnknownOperatorError(Exception):
    """A file holds what is not known here."""


class Network:
    """A file's operators, and its weights: on the CPU in float32, until they are moved."""

    def __init__(self, file: Path) -> None:
        """Read and try a file. Raises UnknownOperatorError."""
        model = onnx.load(str(file))
        version, graph = next(one.version for one in model.opset_import if one.domain == ""), model.graph
        if version != OPSET:
            raise UnknownOperatorError(f"{file.name} has operators of opset {version}, and those of {OPSET} are known")
        self.device, self.dtype = _CPU, torch.float32
        self.inputs = [given.name for given in graph.input]
        self._output = graph.output[0].name
        self._steps = [_Step(node) for node in graph.node]
        if unknown := sorted({step.kind for step in self._steps} - OPERATORS.keys() - _OWN):
            raise UnknownOperatorError(f"{file.name} has operators that are not known: {', '.join(unknown)}")
        self._weights = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
        ones = {given.name: _ones(given) for given in graph.input}
        try:
            with torch.inference_mode():
                self.program(ones)(**ones)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnknownOperatorError(f"{file.name} cannot be tried: {type(error).__name__}: {error}") from error

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put the weights on a device. dtype: theirs from now on, and of what is computed of the inputs."""
        self.device, self.dtype = device, dtype
        for name, tensor in self._weights.items():
            # Single numbers, and integers, which are mostly shapes, stay where they are.
            if tensor.is_floating_point() and tensor.numel() > 1:
                self._weights[name] = _in_precision(tensor, dtype).to(device)

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(weight.nbytes for weight in self._weights.values())

    def program(self, inputs: Mapping[str, Tensor]) -> Program:
        """What computes the output of inputs on the device with these shapes, whatever they hold."""
        with torch.inference_mode():
            return _Tracer(self.device, self.dtype).trace(self._steps, self._weights, inputs, self._output)


def _ones(given: Any) -> Tensor:
    """A small input of its kind."""
    kind = given.type.tensor_type
    return torch.ones([extent.dim_value or _TRIAL_EXTENT for extent in kind.shape.dim], dtype=_TYPES[kind.elem_type])


def _in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Of numbers with a fraction: what is finite stays so, as float32's lowest number, with which some hide padding:
    infinity would make NaN of a row that hides everything.
    """
    if not tensor.is_floating_point():
        return tensor
    if dtype.itemsize < tensor.dtype.itemsize:
        limits = torch.finfo(dtype)
        tensor = torch.where(tensor.isinf(), tensor, tensor.clamp(limits.min, limits.max))
    return tensor.to(dtype)


class _Step:
    """One operator of a file."""

    def __init__(self, node: Any) -> None:
        self.kind: str = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.attributes = {one.name: _attribute(one) for one in node.attribute}


def _attribute(given: Any) -> Any:
    value = helper.get_attribute_value(given)
    return torch.from_numpy(numpy_helper.to_array(value).copy()) if isinstance(value, TensorProto) else value


# What the tracer does itself.
_OWN = {"Constant", "Identity", "Shape"}


class _Tracer:
    """Goes through a file's operators once: those that follow from shapes and weights are computed, and those whose
    results depend on what the inputs hold are written down. Of the latter's results only shapes and types are made.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._graph = fx.Graph()
        self._kept = torch.nn.Module()  # the tensors that the program refers to
        self._names: dict[int, fx.Node] = {}  # of the kept tensors
        self._placed: dict[int, Tensor] = {}  # what is on the device, by the tensor it was made of
        self._values: dict[str, Tensor] = {}
        self._live: dict[str, fx.Node] = {}

    def trace(
        self, steps: list[_Step], weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor], output: str
    ) -> Program:
        self._values |= weights
        for name, tensor in inputs.items():
            self._live[name] = self._graph.placeholder(name.replace(".", "_"))
            self._values[name] = self._live[name].meta["value"] = tensor.to(_META)
        for step in steps:
            self._do(step)
        self._graph.output(self._graph.call_method("float", (self._live[output],)))
        fuse(self._graph)
        self._graph.eliminate_dead_code()
        for node in self._graph.nodes:
            node.meta.clear()
        module, names = fx.GraphModule(self._kept, self._graph), list(inputs)
        return lambda **given: module(*(given[name] for name in names))

    def _do(self, step: _Step) -> None:
        if step.kind == "Constant":
            (value,) = step.attributes.values()
            self._values[step.outputs[0]] = torch.as_tensor(value)
        elif step.kind == "Identity":
            self._values[step.outputs[0]] = self._values[step.inputs[0]]
            if step.inputs[0] in self._live:
                self._live[step.outputs[0]] = self._live[step.inputs[0]]
        elif step.kind == "Shape":
            shape = self._values[step.inputs[0]].shape[step.attributes.get("start", 0) : step.attributes.get("end")]
            self._values[step.outputs[0]] = torch.tensor(shape, dtype=torch.int64)
        else:
            self._compute(step)

    def _compute(self, step: _Step) -> None:
        known = OPERATORS[step.kind]
        given = [self._values[name] if name else None for name in step.inputs]
        is_live = any(name in self._live for name in step.inputs)
        on_device = is_live or any(tensor is not None and tensor.device != _CPU for tensor in given)
        args: list[Any] = []
        nodes: list[Any] = []
        for place, (name, tensor) in enumerate(zip(step.inputs, given, strict=True)):
            arg: Any = tensor
            if tensor is None:
                pass
            elif place in known.lists:
                if name in self._live:
                    raise UnknownOperatorError(f"{step.kind} makes a shape of what the texts hold")
                arg = tensor.tolist()
            elif on_device and name not in self._live:
                is_number = place in known.numbers and _is_number(step, tensor, given)
                arg = self._number(tensor) if is_number else self._on_device(tensor)
            args.append(arg.to(_META) if is_live and isinstance(arg, Tensor) else arg)
            nodes.append(self._live.get(name) or self._keep(arg) if is_live else None)
        attributes = {name: self._attribute(name, value, on_device) for name, value in step.attributes.items()}
        try:
            result = known.function(*args, **attributes)
        except TypeError as error:
            raise UnknownOperatorError(f"{step.kind} is used in a way that is not known: {error}") from error
        if not is_live:
            self._store(step, result)
            return
        node = self._graph.call_function(known.function, tuple(nodes), attributes)
        node.meta["value"] = result
        self._store(step, result, node)

    def _store(self, step: _Step, result: Any, node: fx.Node | None = None) -> None:
        parts = result if isinstance(result, tuple | list) else [result]
        for i, (name, part) in enumerate(zip(step.outputs, parts, strict=True)):
            one = node
            if node is not None and isinstance(result, tuple | list):
                one = self._add(operator.getitem, (node, i), part)
            if one is not None and part.is_floating_point() and part.dtype != self._dtype:
                part = part.to(self._dtype)
                one = self._graph.call_method("to", (one, self._dtype))
                one.meta["value"] = part
            self._values[name] = part
            if one is not None:
                self._live[name] = one

    def _add(self, function: Callable[..., Any], args: tuple[Any, ...], value: Tensor) -> fx.Node:
        node = self._graph.call_function(function, args)
        node.meta["value"] = value
        return node

    def _number(self, tensor: Tensor) -> int | float | bool:
        """With all its digits, but in the precision's range: see `_in_precision`."""
        number: int | float | bool = tensor.item()
        if not isinstance(number, float) or math.isinf(number):
            return number
        limits = torch.finfo(self._dtype)
        return min(max(number, limits.min), limits.max)

    def _on_device(self, tensor: Tensor) -> Tensor:
        """What was broadcast is copied once and broadcast there: indices of every head are the same."""
        if (placed := self._placed.get(id(tensor))) is None:
            core = tensor[tuple(slice(None) if step else slice(1) for step in tensor.stride())]
            placed = _in_precision(core, self._dtype).to(self._device).expand(tensor.shape)
            self._placed[id(tensor)] = placed
        return placed

    def _attribute(self, name: str, value: Any, on_device: bool) -> Any:
        if name != "to":
            return value
        dtype = _TYPES[value]
        return self._dtype if on_device and dtype.is_floating_point else dtype

    def _keep(self, value: Any) -> Any:
        """How the program refers to a known value."""
        if not isinstance(value, Tensor):
            return value
        if (node := self._names.get(id(value))) is None:
            name = f"known_{len(self._names)}"
            self._kept.register_buffer(name, value)
            node = self._names[id(value)] = self._graph.get_attr(name)
            node.meta["value"] = value
        return node


def _is_number(step: _Step, tensor: Tensor, given: Sequence[Tensor | None]) -> bool:
    """Whether one element may stand for the tensor: an index of one axis takes that axis away, and axes that no other
    input has would be missing in the result.
    """
    rank = 0 if step.kind == "Gather" else max(one.ndim for one in given if one is not None and one is not tensor)
    return tensor.numel() == 1 and tensor.ndim <= rank
