"""Tunings of encoders that are built and named otherwise than BERT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from ml.bases import read_base_facts
from ml.models.adaptable import adaptable, keeps_rows_apart, read_adapter
from ml.models.classifier import NativeClassifier, load_native
from ml.models.tuning import tune
from ml.specs.job import JobSpec
from ml.specs.tuning import PREFIXABLE
from ml.tuning_checks import resolve_tuning

WORDS, PAD = 50, 1
SIZES: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": PAD}
USUAL: dict[str, Any] = {**SIZES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS: dict[str, Any] = {
    "roberta": lambda: RobertaModel(
        RobertaConfig(**USUAL, intermediate_size=64, max_position_embeddings=66, type_vocab_size=1)
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(**SIZES, dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=64)
    ),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**USUAL, intermediate_size=64, max_position_embeddings=64, classifier_pooling="mean")
    ),
}
SPECS: dict[str, dict[str, Any]] = {
    "top_layers": {"layers": 1},
    "lora": {},
    "adalora": {},
    "ia3": {},
    "adapter": {"size": 8},
    "prompt": {"virtual_tokens": 5},
    "prefix": {"virtual_tokens": 5},
}
CASES = [
    (family, kind)
    for family in MODELS
    for kind in SPECS
    # One matrix makes ModernBERT's queries, keys and values, so there is none to scale for keys alone.
    if not (kind == "prefix" and family not in PREFIXABLE) and (family, kind) != ("modernbert", "ia3")
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small base of each family, with random weights."""
    folders = {}
    for family, build in MODELS.items():
        folders[family] = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        build().save_pretrained(folders[family])
        (folders[family] / "tokenizer.json").write_text("{}")
    return folders


def tuned(base: Path, family: str, kind: str) -> NativeClassifier:
    given = {"dataset": "ds_1", "tuning": {"type": kind, **SPECS[kind]}, "training": {"max_length": 32}}
    spec: Any = resolve_tuning(JobSpec.model_validate(given), read_base_facts(family, base))
    torch.manual_seed(1)
    network = load_native(base, width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0)
    tune(network, spec)
    return network


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    ids, mask = torch.randint(5, WORDS, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    ids[1, 6:], mask[1, 6:] = PAD, 0
    return ids, mask


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_encoder_and_the_head_learn_and_padding_counts_for_nothing(
    bases: dict[str, Path], family: str, kind: str
) -> None:
    network = tuned(bases[family], family, kind).train()
    ids, mask = batch()
    network(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "classifier" in name} >= {f"model.{network.head_name}.weight"}
    inside = [parameter for name, parameter in network.named_parameters() if name in learning and "classif" not in name]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in inside)
    frozen = [parameter for name, parameter in network.named_parameters() if name not in learning]
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)
    network.eval()
    with torch.no_grad():
        together = network(input_ids=ids, attention_mask=mask).logits
        alone = network(input_ids=ids[1:, :6], attention_mask=mask[1:, :6]).logits
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "kind"), [case for case in CASES if case[1] in ("lora", "adalora", "ia3")])
def test_what_is_merged_answers_as_before(bases: dict[str, Path], family: str, kind: str) -> None:
    network = tuned(bases[family], family, kind).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and "classifier" not in name:
                parameter += 0.2 * torch.randn_like(parameter)
    ids, mask = batch()
    with torch.no_grad():
        before = network(input_ids=ids, attention_mask=mask).logits
        assert network.fold()
        torch.testing.assert_close(network(input_ids=ids, attention_mask=mask).logits, before, rtol=0, atol=1e-5)
    plain = load_native(bases[family], width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0)
    assert network.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_a_network_that_is_given_its_adapter_answers_as_the_one_that_was_tuned(
    bases: dict[str, Path], family: str, kind: str
) -> None:
    network = tuned(bases[family], family, kind).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    ids, mask = batch()
    inputs = {"input_ids": ids, "attention_mask": mask}
    layers = read_base_facts(family, bases[family]).linear_layers
    adapter = read_adapter(network, layers)
    assert adapter is not None
    with torch.no_grad(), adaptable(network, layers) as shared:
        features = shared(**inputs, **{name: tensor[None] for name, tensor in adapter.items()})
        assert keeps_rows_apart(shared, inputs, adapter)
        plain = shared.base_weights()
    with torch.no_grad():
        torch.testing.assert_close(network.head(features), network(**inputs).logits, rtol=0, atol=1e-5)
    trained = {name for name in adapter if not name.endswith(("lora_A", "lora_B"))}
    whole = load_native(bases[family], width=3, labels=("a", "b", "c"), head="linear", scale=1.0, dropout=0.0).model
    head = {name for name in whole.state_dict() if name.startswith(network.head_name)}
    assert whole.state_dict().keys() == plain.keys() | trained | head


def test_a_network_of_which_a_norm_outside_the_encoder_trains_cannot_be_given_an_adapter(
    bases: dict[str, Path],
) -> None:
    network = tuned(bases["modernbert"], "modernbert", "lora")
    assert read_adapter(network, read_base_facts("modernbert", bases["modernbert"]).linear_layers) is None
