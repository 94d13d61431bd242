"""Tunings: which of a network's weights train, and what is put into it to be trained. They know no data and no loss.

Outside the encoder, and in its pooler, everything trains: where a layer is new, nothing else makes it more than noise.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ml.models.adalora import AdaLoraTuner
from ml.models.adapters import put_adapters
from ml.models.classifier import NativeClassifier
from ml.models.layers import freeze_parts
from ml.models.prompts import PrefixedEncoder, PromptedEncoder
from ml.models.tuner import LastingTuner, LowRankTuner, MergingTuner
from ml.specs.tuning import (
    AdaLoraTuning,
    AdapterTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    TopLayersTuning,
    Tuning,
)


def tune(network: NativeClassifier, spec: Tuning) -> None:
    """Freeze what a tuning leaves as it is, and put in what it trains, drawn from the seed that is set before."""
    encoder = network.model.base_model
    if isinstance(spec, FullTuning):
        freeze_parts(network, spec.freeze)
        network.hold_still([module for module in encoder.modules() if _is_frozen(module)])
        return
    outside = [child for child in network.model.children() if child is not encoder]
    network.model.requires_grad_(False)
    if isinstance(spec, TopLayersTuning):
        for layer in find_layers(network.model)[1][-spec.layers :]:
            layer.requires_grad_(True)
    elif isinstance(spec, LoraTuning):
        network.tuner = _add_lora(network.model, spec)
    elif isinstance(spec, AdaLoraTuning):
        network.tuner = _add_adalora(network.model, spec)
    elif isinstance(spec, Ia3Tuning):
        network.tuner = _add_ia3(network.model, spec)
    elif isinstance(spec, PromptTuning | PrefixTuning):
        kind = PromptedEncoder if isinstance(spec, PromptTuning) else PrefixedEncoder
        setattr(network.model, network.model.base_model_prefix, kind(encoder, spec.virtual_tokens))
        network.tuner = LastingTuner()
    elif isinstance(spec, AdapterTuning):
        put_adapters(network.model, find_linear(network.model, spec.target_modules), spec.size)
        for norm in (module for module in encoder.modules() if "norm" in type(module).__name__.lower()):
            norm.requires_grad_(True)
        network.tuner = LastingTuner()
    for module in (*outside, getattr(encoder, "pooler", None)):
        if module is not None:
            module.requires_grad_(True)
    if isinstance(spec, TopLayersTuning):
        network.hold_still([module for module in encoder.modules() if _is_frozen(module)])


def _add_lora(model: Any, spec: LoraTuning) -> LowRankTuner:
    """A matrix of low rank beside each target module."""
    from peft import LoraConfig, LoraModel  # slow to import, and few need it

    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=find_linear(model, spec.target_modules),
    )
    return LowRankTuner(LoraModel(model, config, "default"))


def _add_adalora(model: Any, spec: AdaLoraTuning) -> AdaLoraTuner:
    """The same, decomposed; how many steps there are is heard with each of them."""
    from peft import AdaLoraConfig, AdaLoraModel

    config = AdaLoraConfig(
        init_r=spec.initial_rank,
        target_r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=find_linear(model, spec.target_modules),
        deltaT=spec.interval,
        beta1=spec.beta1,
        beta2=spec.beta2,
        total_step=1,
    )
    return AdaLoraTuner(AdaLoraModel(model, config, "default"), spec)


def _add_ia3(model: Any, spec: Ia3Tuning) -> MergingTuner:
    """Factors for the outputs of some linear layers and the inputs of others."""
    from peft import IA3Config, IA3Model

    inputs = find_linear(model, spec.feedforward_modules)
    config = IA3Config(target_modules=[*find_linear(model, spec.target_modules), *inputs], feedforward_modules=inputs)
    peft = IA3Model(model, config, "default")
    for name, factors in model.named_parameters():
        if ".ia3_l." in name:
            factors.undecayed = True  # they begin at 1, and 0 would be silence
    return MergingTuner(peft)


def find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The encoder's layers, the first at the bottom, and what their list is called."""
    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise TypeError(f"{type(model).__name__} has no stack of {count} layers")


def find_linear(model: Any, targets: Sequence[str] | None) -> list[str]:
    """The names in the whole model of linear layers by their names in each layer of the encoder."""
    assert targets is not None, "a resolved spec names its target modules"
    stack, layers = find_layers(model)
    return [f"{stack}.{number}.{name}" for number in range(len(layers)) for name in targets]


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module has weights, and none of them trains."""
    weights = list(module.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)
