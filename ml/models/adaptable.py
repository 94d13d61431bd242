"""A network that is given an adapter with each text: one file of it serves all LoRA models of a base.

It knows a tuned network, not how it was trained or what becomes of the file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ml.models.classifier import NativeClassifier
from ml.models.tuner import LowRankTuner
from ml.models.tuning import find_linear

# What is given of a layer, after its name: a term of low rank beside its own weights, or weights in their place.
TERM = ("lora_A", "lora_B")  # (r, K) and (r, O)
WEIGHTS = ("weight", "bias")  # (K, O) and (O,)

# What rows may move each other's features by; a network that mixes them up does so by far more.
_TOLERANCE = 1e-4


class AdaptedLinear(nn.Module):
    """x·Wᵀ + (x·Aᵀ)·B + b, with the A and B of each row."""

    given: tuple[Tensor, Tensor]  # (R, r, K) and (R, r, O), of each row, or R = 1 for all

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, K) → (B, L, O)."""
        down, up = self.given
        y: Tensor = x @ self.base_layer.weight.T + (x @ down.transpose(1, 2)) @ up
        return y if self.base_layer.bias is None else y + self.base_layer.bias


class GivenLinear(nn.Module):
    """x·W + b, with the W and b of each row."""

    given: tuple[Tensor, Tensor]  # (R, K, O) and (R, O), of each row, or R = 1 for all

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) → (B, O)."""
        weight, bias = self.given
        return (x[:, None] @ weight)[:, 0] + bias


class AdaptableNetwork(nn.Module):
    """A classifier without its last layer. What trained before that comes in by name: see `read_adapter`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # transformers is untyped
        layers = dict(model.named_modules())
        self._layers = {name: it for name, it in layers.items() if isinstance(it, AdaptedLinear | GivenLinear)}

    def forward(self, **inputs: Tensor) -> Tensor:
        """Texts as `NativeClassifier` takes them, and an adapter (R, …) → features (B, D)."""
        for name, layer in self._layers.items():
            first, second = TERM if isinstance(layer, AdaptedLinear) else WEIGHTS
            layer.given = inputs.pop(f"{name}.{first}"), inputs.pop(f"{name}.{second}")
        features: Tensor = self.model(**inputs).logits
        return features

    def base_weights(self) -> dict[str, Tensor]:
        """Those that are not given, as the base's own class calls them; the last layer's are left out."""
        return {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self.model.state_dict().items()
            if not name.endswith("_extra_state")  # of AdaLoRA's allocation
        }


def read_adapter(network: NativeClassifier, layers: Sequence[str]) -> dict[str, Tensor] | None:
    """What trained of a network, but for its last layer: {layer}.lora_A and .lora_B, or .weight and .bias.

    Each linear layer inside the encoder has a term, of rank 0 where none trained. layers: what they are called in a
    layer of the encoder. None where something else trained than terms of low rank and linear layers.
    """
    tuner = network.tuner
    if not isinstance(tuner, LowRankTuner):
        return None
    adapter: dict[str, Tensor] = {}
    covered = {f"{network.head_name}.{name}" for name, _ in network.head.named_parameters()}
    inside = find_linear(network.model, layers)
    for name in inside:
        layer = network.model.get_submodule(name)
        adapter |= zip((f"{name}.{kind}" for kind in TERM), tuner.term_of(layer), strict=True)
        covered |= {f"{name}.{part}" for part, _ in layer.named_parameters()}
    for name in _trained_linear(network, inside):
        layer = network.model.get_submodule(name)
        if layer.bias is None:
            return None
        adapter |= {f"{name}.weight": layer.weight.T, f"{name}.bias": layer.bias}
        covered |= {f"{name}.{part}" for part in WEIGHTS}
    trained = {name for name, parameter in network.model.named_parameters() if parameter.requires_grad}
    return {name: tensor.detach().contiguous() for name, tensor in adapter.items()} if trained <= covered else None


def axes_of(adapter: Iterable[str]) -> dict[str, dict[int, str]]:
    """What may vary of an adapter's tensors (R, …), by name: the rows, and each rank."""
    axes = {}
    for name in adapter:
        layer, _, kind = name.rpartition(".")
        axes[name] = {0: "rows", **({1: f"{layer}.rank"} if kind in TERM else {})}
    return axes


@contextmanager
def adaptable(network: NativeClassifier, layers: Sequence[str]) -> Iterator[AdaptableNetwork]:
    """The network that takes what `read_adapter` reads, while the block lasts: it stands in for the tuned one."""
    inside = find_linear(network.model, layers)
    given = _trained_linear(network, inside)
    replaced = {name: network.model.get_submodule(name) for name in (*inside, *given, network.head_name)}
    try:
        for name in inside:
            layer = replaced[name]
            network.model.set_submodule(name, AdaptedLinear(getattr(layer, "base_layer", layer)))
        for name in given:
            network.model.set_submodule(name, GivenLinear())
        network.set_head(nn.Identity())
        yield AdaptableNetwork(network.model)
    finally:
        for name, layer in replaced.items():
            network.model.set_submodule(name, layer)


def keeps_rows_apart(network: AdaptableNetwork, inputs: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> bool:
    """Whether rows with different adapters answer in one pass as each does alone. inputs: of two rows."""

    def answer(rows: slice, weights: Sequence[float]) -> Tensor:
        given = {name: torch.stack([weight * tensor for weight in weights]) for name, tensor in adapter.items()}
        features: Tensor = network(**{name: tensor[rows] for name, tensor in inputs.items()}, **given)
        return features

    with torch.no_grad():
        try:
            together = answer(slice(2), (1.0, 0.5))
            apart = torch.cat([answer(slice(1), (1.0,)), answer(slice(1, 2), (0.5,))])
        except (RuntimeError, TypeError):  # its layers take tokens in another order, or rows of all texts at once
            return False
    return together.shape == apart.shape and torch.allclose(together, apart, rtol=_TOLERANCE, atol=_TOLERANCE)


def _trained_linear(network: NativeClassifier, inside: Sequence[str]) -> list[str]:
    """Linear layers that train, but for the last, and for the terms, which are parts of the layers `inside`."""
    parts = tuple(f"{name}." for name in inside)
    return [
        name
        for name, module in network.model.named_modules()
        if type(module) is nn.Linear and module.weight.requires_grad and name != network.head_name
        if not name.startswith(parts)
    ]
