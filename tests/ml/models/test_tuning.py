"""What a tuning makes of a network, before any training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from ml.data.tokens import TokenTable
from ml.models.classifier import NativeClassifier, load_native
from ml.models.tuning import find_layers, tune
from ml.specs.tuning import Tuning
from tests.tiny_base import make_tiny_base

SPECS: TypeAdapter[Any] = TypeAdapter(Tuning)


def tuned(base: Path, spec: dict[str, Any], **options: Any) -> NativeClassifier:
    whole: dict[str, Any] = {"width": 3, "labels": ("a", "b", "c"), "head": "linear", "scale": 1.0, "dropout": 0.1}
    torch.manual_seed(1)
    network = load_native(base, **{**whole, **options})
    tune(network, SPECS.validate_python(spec))
    return network


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with four layers."""
    return make_tiny_base(tmp_path_factory.mktemp("deep-base"), layers=4)


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_top_layers_train_and_those_below_drop_nothing_out(deep_base: Path, layers: int) -> None:
    network = tuned(deep_base, {"type": "top_layers", "layers": layers}).train()
    stack = list(find_layers(network.model))
    for layer in stack[:-layers]:
        assert not any(parameter.requires_grad for parameter in layer.parameters())
        assert not any(module.training for module in layer.modules())
    for layer in stack[-layers:]:
        assert all(parameter.requires_grad for parameter in layer.parameters())
        assert all(module.training for module in layer.modules())
    embeddings: nn.Module = network.model.bert.embeddings
    assert not any(parameter.requires_grad for parameter in embeddings.parameters())
    assert not any(module.training for module in embeddings.modules())
    assert network.model.bert.pooler.dense.weight.requires_grad
    assert network.model.classifier.weight.requires_grad
    assert network.model.dropout.training
    assert not any(module.training for module in network.eval().modules())


def test_the_layers_below_answer_the_same_in_training_and_pass_no_gradient_down(
    deep_base: Path, tiny_base: Path
) -> None:
    network = tuned(deep_base, {"type": "top_layers", "layers": 2}).train()
    inputs = TokenTable(deep_base, ["where is my parcel", "money back"], 32, pad_id=0, has_types=True).inputs_of(
        np.arange(2)
    )
    seen: list[torch.Tensor] = []
    find_layers(network.model)[1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    for _ in range(2):
        network(**inputs)
    assert torch.equal(seen[0], seen[1])
    assert not seen[0].requires_grad


def test_a_base_without_a_stack_of_layers_is_named() -> None:
    model: Any = nn.Module()
    model.base_model, model.config = nn.Linear(2, 2), type("Config", (), {"num_hidden_layers": 3})
    with pytest.raises(TypeError, match="no stack of 3 layers"):
        find_layers(model)
