"""Shorter ways come to the same answers and gradients as the network that transformers builds."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    DynamicCache,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from ml.models.shortcuts import Dropout, attend, take_shortcuts

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
    "initializer_range": 0.3,
}
SMALL_DISTILBERT = DistilBertConfig(
    vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3, initializer_range=0.3
)
CONFIGS = [
    *(kind(**SIZES) for kind in (BertConfig, RobertaConfig, XLMRobertaConfig, CamembertConfig, ElectraConfig)),
    SMALL_DISTILBERT,
]
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 3, 1, 1], [2, 9, 9, 3, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def pair(config: Any) -> tuple[nn.Module, nn.Module]:
    """The same network as it comes, and with the shortcuts."""
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config).double()
    short = deepcopy(plain)
    take_shortcuts(short)
    return plain, short


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_answers_and_gradients_are_those_of_the_plain_network(config: Any) -> None:
    found = []
    for network in pair(config):
        logits = network.eval()(input_ids=IDS, attention_mask=MASK).logits
        logits.square().sum().backward()
        found.append(
            (
                logits.detach(),
                {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.named_parameters()},
            )
        )
    (plain, plain_gradients), (short, short_gradients) = found
    torch.testing.assert_close(short, plain)
    torch.testing.assert_close(short_gradients, plain_gradients)


def test_the_last_layer_answers_for_the_first_token_alone() -> None:
    plain, short = pair(CONFIGS[0])
    with torch.no_grad():
        whole = plain.eval().bert(IDS, MASK).last_hidden_state
        first = short.eval().bert(IDS, MASK).last_hidden_state
    assert first.shape == (3, 1, 16)
    torch.testing.assert_close(first, whole[:, :1])


def test_it_reads_keys_and_values_that_are_given_besides() -> None:
    past = [tuple(torch.randn(2, 3, 2, 4, 8, dtype=torch.float64)) for _ in range(2)]
    seen = torch.cat([torch.ones(3, 4, dtype=torch.long), MASK], 1)
    plain, short = (
        network.eval()(input_ids=IDS, attention_mask=seen, past_key_values=DynamicCache(past)).logits
        for network in pair(CONFIGS[0])
    )
    torch.testing.assert_close(short, plain)


def test_hidden_states_are_as_precise_as_the_products() -> None:
    _, short = pair(CONFIGS[0])
    short.float()
    seen: list[torch.dtype] = []
    short.bert.encoder.layer[1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    for is_lower in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_lower):
            short(input_ids=IDS, attention_mask=MASK)
    assert seen == [torch.bfloat16, torch.float32]


# -------------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_and_the_mean(p: float, kind: torch.dtype) -> None:
    hidden = torch.ones(300, 401, dtype=kind, requires_grad=True)  # no multiple of what one number decides
    dropped = Dropout(p)(hidden)
    dropped.sum().backward()
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.006)
    assert float(dropped.detach().float().mean()) == pytest.approx(1, rel=0.03)
    assert dropped.detach().unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=0.005)
    torch.testing.assert_close(hidden.grad, dropped.detach())


def test_what_is_dropped_does_not_depend_on_its_neighbours() -> None:
    dropped = (Dropout(0.5)(torch.ones(200_000)) == 0).float() - 0.5
    for distance in (1, 2, 3, 4, 5):
        assert abs(float((dropped[distance:] * dropped[:-distance]).mean())) < 0.25 * 0.02


def test_dropout_comes_from_the_generator_that_a_checkpoint_keeps() -> None:
    state = torch.get_rng_state()
    first = Dropout(0.5)(torch.ones(1000))
    assert not torch.equal(Dropout(0.5)(torch.ones(1000)), first)
    torch.set_rng_state(state)
    assert torch.equal(Dropout(0.5)(torch.ones(1000)), first)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(p: float) -> None:
    assert torch.equal(Dropout(p)(torch.ones(10)), torch.full((10,), 1 - p))
    assert torch.equal(Dropout(p).eval()(torch.ones(10)), torch.ones(10))


# ------------------------------------------------------------------------------------------------------------ attention


def heads() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, 2, 5, 8) for _ in range(3)]


def test_attention_that_drops_next_to_nothing_is_attention() -> None:
    mask = MASK.bool()[:, None, None].expand(3, 1, 5, 5)
    module = nn.Module()
    with_dropout, _ = attend(module, *heads(), mask, dropout=2e-6, scaling=0.3)
    without, _ = attend(module, *heads(), mask, dropout=0.0, scaling=0.3)
    torch.testing.assert_close(with_dropout, without)


def test_attention_drops_weights_and_never_reads_padding() -> None:
    query, key, value = heads()
    mask = MASK.bool()[:, None, None].expand(3, 1, 5, 5)
    value[1, :, 3:] = torch.nan
    value = torch.where(mask[:, :, 0, :, None], value, 1e6)
    attended = torch.stack([attend(nn.Module(), query, key, value, mask, dropout=0.3)[0] for _ in range(3000)])
    exact, _ = attend(nn.Module(), query, key, value, mask)
    assert float(attended.abs().max()) < 100
    torch.testing.assert_close(attended.mean(0), exact, atol=0.1, rtol=0)
    assert float(attended.std(0).min()) > 0
