"""The networks: what is trainable, what the config says, and that padding counts for nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml.data.tokens import TokenTable
from ml.models.classifier import FeatureHead, NativeClassifier, load_encoder, load_native
from ml.models.outputs import Outputs

LABELS = ("delivery", "other", "refund")


def load(base: Path, dropout: float | None = None, **changes: Any) -> NativeClassifier:
    options: dict[str, Any] = {"width": 3, "labels": LABELS, "head": "linear", "scale": 1.0, **changes}
    return load_native(base, dropout=dropout, **options)


@pytest.fixture
def tokens(tiny_base: Path) -> TokenTable:
    texts = ["hello", "where is my parcel today please", "money back"]
    return TokenTable.of(tiny_base, texts, 32, pad_id=0, has_types=True)


def test_the_native_classifier_has_a_logit_for_each_label_and_trains_whole(tiny_base: Path, tokens: TokenTable) -> None:
    network = load(tiny_base)
    outputs = network(**tokens.inputs_of(np.arange(3)))
    assert outputs.logits.shape == (3, len(LABELS))
    assert outputs.embeddings.shape == (3, 32)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.model.config.id2label == dict(enumerate(LABELS))


def test_outputs_that_are_no_labels_are_not_named_after_them(tiny_base: Path, tokens: TokenTable) -> None:
    network = load(tiny_base, width=2)
    assert network(**tokens.inputs_of(np.arange(3))).logits.shape == (3, 2)
    assert network.model.config.num_labels == 2
    assert not set(network.model.config.id2label.values()) & set(LABELS)


@pytest.mark.parametrize("head", ["linear", "cosine", "shared", "ordered"])
def test_the_embeddings_are_what_the_head_sees(tiny_base: Path, tokens: TokenTable, head: str) -> None:
    network = load(tiny_base, head=head, scale=7.0).eval()
    outputs = network(**tokens.inputs_of(np.arange(3)))
    torch.testing.assert_close(network.head(outputs.embeddings), outputs.logits)


@pytest.mark.parametrize("head", ["linear", "cosine", "shared", "ordered"])
def test_the_new_head_is_drawn_from_the_seed(tiny_base: Path, head: str) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(next(p for p in load(tiny_base, head=head).head.parameters() if p.ndim > 1))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(("dropout", "expected"), [(None, {0.1}), (0.0, {0.0}), (0.3, {0.3})])
def test_dropout_is_the_bases_own_unless_it_is_given(
    tiny_base: Path, dropout: float | None, expected: set[float]
) -> None:
    network = load(tiny_base, dropout)
    assert {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)} == expected


def test_word_embeddings_can_be_watched_and_moved(tiny_base: Path, tokens: TokenTable) -> None:
    network = load(tiny_base, 0.0)
    inputs = tokens.inputs_of(np.arange(3))
    with network.watched_words() as words:
        plain = network(**inputs).logits
    assert [tuple(one.shape) for one in words] == [(*inputs["input_ids"].shape, 32)]
    with network.moved_words(torch.zeros_like(words[0])):
        assert torch.equal(network(**inputs).logits, plain)
    with network.moved_words(0.1 * torch.ones_like(words[0]).cumsum(-1)):
        assert not torch.allclose(network(**inputs).logits, plain)
    assert torch.equal(network(**inputs).logits, plain)  # afterwards they are as they were


def test_the_encoder_is_frozen_and_runs_without_dropout(tiny_base: Path, tokens: TokenTable) -> None:
    encoder = load_encoder(tiny_base)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    inputs = tokens.inputs_of(np.arange(3))
    assert torch.equal(encoder(**inputs), encoder(**inputs))


def test_a_text_is_the_mean_of_its_real_tokens(tiny_base: Path, tokens: TokenTable) -> None:
    encoder = load_encoder(tiny_base)
    together = encoder(**tokens.inputs_of(np.arange(3)))
    for row in range(3):
        alone = tokens.inputs_of(np.array([row]))
        by_hand = encoder.model(**alone).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(together[row], by_hand, rtol=0, atol=1e-5)


def test_dropout_of_a_head_over_features_acts_in_training_only() -> None:
    head = FeatureHead(8, 3, "linear", 1.0, 0.5)
    features = torch.ones(4, 8)
    assert torch.equal(head.eval()(features=features).logits, head.head(features))
    assert not torch.equal(head.train()(features=features).logits, head.head(features))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_get_float32_or_better(given: torch.dtype, expected: torch.dtype) -> None:
    outputs = Outputs(torch.ones(2, 2, dtype=given), torch.ones(2, 5, dtype=given)).in_full_precision()
    assert (outputs.logits.dtype, outputs.embeddings.dtype) == (expected, expected)
