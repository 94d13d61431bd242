"""The parts of a base model: told by name in every family, frozen by name."""

from pathlib import Path

import pytest
import torch

from ml.models.classifier import NativeClassifier, load_native
from ml.models.layers import depths_below_head, freeze_parts, part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bert.embeddings.word_embeddings.weight", "embeddings"),
        ("bert.embeddings.LayerNorm.bias", "embeddings"),
        ("bert.encoder.layer.0.attention.self.query.weight", "layer.0"),
        ("bert.encoder.layer.11.output.LayerNorm.weight", "layer.11"),
        ("bert.pooler.dense.weight", None),
        ("classifier.weight", None),
        ("distilbert.transformer.layer.5.ffn.lin1.weight", "layer.5"),
        ("pre_classifier.weight", None),
        ("electra.embeddings_project.weight", "embeddings"),
        ("deberta.encoder.rel_embeddings.weight", "embeddings"),
        ("mpnet.encoder.relative_attention_bias.weight", "embeddings"),
        ("model.embeddings.tok_embeddings.weight", "embeddings"),
        ("model.layers.3.mlp.Wi.weight", "layer.3"),
        ("model.final_norm.weight", None),
        ("head.dense.weight", None),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", "layer.0"),
        ("base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.default.weight", "layer.1"),
    ],
)
def test_a_parameter_belongs_to_the_part_that_its_name_tells(name: str, part: str | None) -> None:
    assert part_of(name) == part


def test_the_head_is_above_the_last_layer_and_the_embeddings_below_the_first() -> None:
    names = [
        "bert.embeddings.word.weight",
        "bert.encoder.layer.0.x",
        "bert.encoder.layer.1.x",
        "bert.pooler.x",
        "head.x",
    ]
    assert list(depths_below_head(names).values()) == [3, 2, 1, 0, 0]
    assert depths_below_head(["head.weight"]) == {"head.weight": 0}


def load(base: Path) -> NativeClassifier:
    return load_native(base, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0)


def test_named_parts_are_frozen_and_the_rest_trains(tiny_base: Path) -> None:
    network = load(tiny_base)
    freeze_parts(network, ["layer.0", "embeddings"])
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (part_of(name) not in {"layer.0", "embeddings"}), name


def test_frozen_embeddings_are_not_compacted(tiny_base: Path) -> None:
    network = load(tiny_base)
    whole = network.model.get_input_embeddings().weight
    freeze_parts(network, ["embeddings"])
    network.compact_words(torch.tensor([0, 1, 2]))
    assert network.model.get_input_embeddings().weight is whole
