"""Tunings: which of a network's weights train, and what is put into it to be trained. They know no data and no loss.

Outside the encoder, and in its pooler, everything trains: where a layer is new, nothing else makes it more than noise.
"""

from typing import Any

from torch import nn

from ml.models.classifier import NativeClassifier
from ml.specs.tuning import TopLayersTuning, Tuning


def tune(network: NativeClassifier, spec: Tuning) -> None:
    """Freeze what a tuning leaves as it is. What is new is drawn from the seed that is set before."""
    if not isinstance(spec, TopLayersTuning):
        return
    encoder = network.model.base_model
    encoder.requires_grad_(False)
    for layer in find_layers(network.model)[-spec.layers :]:
        layer.requires_grad_(True)
    _train_pooler(encoder)
    network.hold_still([module for module in encoder.modules() if _is_frozen(module)])


def find_layers(model: Any) -> nn.ModuleList:
    """The encoder's layers, the first at the bottom."""
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise TypeError(f"{type(model).__name__} has no stack of {count} layers")


def _train_pooler(encoder: Any) -> None:
    if (pooler := getattr(encoder, "pooler", None)) is not None:
        pooler.requires_grad_(True)


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has weights, and none of them trains."""
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)
