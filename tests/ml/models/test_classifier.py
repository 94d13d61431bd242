"""The networks: what is trainable, what the config says, and that padding counts for nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ml.data.tokens import TokenTable
from ml.models.classifier import LinearHead, load_encoder, load_native
from ml.models.outputs import Outputs

LABELS = ("delivery", "other", "refund")


@pytest.fixture
def tokens(tiny_base: Path) -> TokenTable:
    texts = ["hello", "where is my parcel today please", "money back"]
    return TokenTable(tiny_base, texts, 32, pad_id=0, has_types=True)


def test_the_native_classifier_has_a_logit_for_each_label_and_trains_whole(tiny_base: Path, tokens: TokenTable) -> None:
    network = load_native(tiny_base, LABELS, None)
    assert network(**tokens.inputs_of(np.arange(3))).logits.shape == (3, len(LABELS))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.model.config.id2label == dict(enumerate(LABELS))


def test_the_new_head_is_drawn_from_the_seed(tiny_base: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load_native(tiny_base, LABELS, None).model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(("dropout", "expected"), [(None, {0.1}), (0.0, {0.0}), (0.3, {0.3})])
def test_dropout_is_the_bases_own_unless_it_is_given(
    tiny_base: Path, dropout: float | None, expected: set[float]
) -> None:
    network = load_native(tiny_base, LABELS, dropout)
    assert {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)} == expected


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


def test_dropout_of_the_linear_head_acts_in_training_only() -> None:
    head = LinearHead(8, 3, 0.5)
    features = torch.ones(4, 8)
    assert torch.equal(head.eval()(features=features).logits, head.linear(features))
    assert not torch.equal(head.train()(features=features).logits, head.linear(features))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_get_float32_or_better(given: torch.dtype, expected: torch.dtype) -> None:
    assert Outputs(torch.ones(2, 2, dtype=given)).in_full_precision().logits.dtype == expected
