"""What a tuning makes of a network, before any training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from ml.data.tokens import TokenTable
from ml.models.adapters import Bottleneck
from ml.models.classifier import NativeClassifier, load_native
from ml.models.tuning import find_layers, tune
from ml.specs.tuning import Tuning
from tests.tiny_base import make_tiny_base

SPECS: TypeAdapter[Any] = TypeAdapter(Tuning)


LORA = {"type": "lora", "target_modules": ["attention.self.query"]}
ADAPTER = {"type": "adapter", "target_modules": ["attention.output.dense", "output.dense"], "size": 8}
UNTOUCHED_AT_FIRST = [{"type": "top_layers"}, LORA]
DRAWN = [LORA, ADAPTER]


def tuned(base: Path, spec: dict[str, Any], *, seed: int = 1, **options: Any) -> NativeClassifier:
    whole: dict[str, Any] = {"width": 3, "labels": ("a", "b", "c"), "head": "linear", "scale": 1.0, "dropout": 0.1}
    torch.manual_seed(seed)
    network = load_native(base, **{**whole, **options})
    tune(network, SPECS.validate_python(spec))
    return network


def inputs_for(base: Path) -> dict[str, torch.Tensor]:
    return TokenTable.of(base, ["where is my parcel", "money back"], 32, pad_id=0, has_types=True).inputs_of(
        np.arange(2)
    )


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with four layers."""
    return make_tiny_base(tmp_path_factory.mktemp("deep-base"), layers=4)


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_the_top_layers_train_and_those_below_drop_nothing_out(deep_base: Path, layers: int) -> None:
    network = tuned(deep_base, {"type": "top_layers", "layers": layers}).train()
    stack = list(find_layers(network.model)[1])
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


def test_what_is_frozen_by_name_neither_learns_nor_drops_out(deep_base: Path) -> None:
    network = tuned(deep_base, {"type": "full", "freeze": ["layer.2", "embeddings"]}).train()
    still = [network.model.bert.embeddings, find_layers(network.model)[1][2]]
    for part in still:
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not any(module.training for module in part.modules())
    frozen = {id(parameter) for part in still for parameter in part.parameters()}
    assert all(parameter.requires_grad for parameter in network.parameters() if id(parameter) not in frozen)
    assert find_layers(network.model)[1][1].training


def test_the_layers_below_answer_the_same_in_training_and_pass_no_gradient_down(deep_base: Path) -> None:
    network = tuned(deep_base, {"type": "top_layers", "layers": 2}).train()
    inputs = inputs_for(deep_base)
    seen: list[torch.Tensor] = []
    find_layers(network.model)[1][1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    for _ in range(2):
        network(**inputs)
    assert torch.equal(seen[0], seen[1])
    assert not seen[0].requires_grad


def test_a_base_without_a_stack_of_layers_is_named() -> None:
    model: Any = nn.Module()
    model.config = type("Config", (), {"num_hidden_layers": 3})
    with pytest.raises(TypeError, match="no stack of 3 layers"):
        find_layers(model)


def test_low_rank_matrices_stand_beside_the_target_modules_of_every_layer(deep_base: Path) -> None:
    targets = ["attention.self.query", "output.dense"]
    network = tuned(deep_base, {"type": "lora", "target_modules": targets, "rank": 3, "alpha": 6})
    found = {name for name, module in network.named_modules() if hasattr(module, "lora_A") and module.lora_A}
    assert found == {f"model.bert.encoder.layer.{i}.{name}" for i in range(4) for name in targets}
    layer: Any = network.get_submodule(min(found))
    assert layer.lora_A["default"].weight.shape == (3, 32)
    assert layer.scaling["default"] == 2


@pytest.mark.parametrize("width", [5, 40])
def test_an_adapter_is_what_its_formula_says_and_begins_as_almost_the_identity(width: int) -> None:
    torch.manual_seed(0)
    adapter, x = Bottleneck(8, width), torch.randn(3, 8)
    torch.testing.assert_close(adapter(x), x, rtol=0, atol=0.02)
    assert not torch.equal(adapter(x), x)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    down, up = adapter.down, adapter.up
    inner = torch.nn.functional.gelu(x @ down.weight.T + down.bias)
    assert inner.shape == (3, width)
    torch.testing.assert_close(adapter(x), x + inner @ up.weight.T + up.bias)


@pytest.mark.parametrize("spec", UNTOUCHED_AT_FIRST, ids=str)
def test_a_tuned_network_begins_where_the_base_stands(deep_base: Path, spec: dict[str, Any]) -> None:
    inputs = inputs_for(deep_base)
    plain, other = tuned(deep_base, {"type": "full"}).eval(), tuned(deep_base, spec).eval()
    torch.testing.assert_close(other(**inputs).logits, plain(**inputs).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", DRAWN, ids=str)
def test_what_is_new_is_drawn_from_the_seed(deep_base: Path, spec: dict[str, Any]) -> None:
    first, again, other = (dict(tuned(deep_base, spec, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    new = [name for name in first if first[name].requires_grad and "classifier" not in name]
    assert any(not torch.equal(first[name], other[name]) for name in new)


@pytest.mark.parametrize("spec", [LORA, ADAPTER], ids=str)
@pytest.mark.parametrize("head", ["cosine", "shared", "ordered"])
def test_a_head_of_another_kind_trains_as_well(deep_base: Path, spec: dict[str, Any], head: str) -> None:
    network = tuned(deep_base, spec, head=head)
    assert all(parameter.requires_grad for parameter in network.head.parameters())
    assert network.fold() == (spec == LORA and head != "cosine")
