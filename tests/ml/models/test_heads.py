"""The last layer: what each kind computes, and which of them are a linear layer in disguise."""

import pytest
import torch
from torch.nn import functional

from ml.models.heads import CosineHead, SharedHead, as_linear, build_head

FEATURES = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_a_cosine_head_gives_the_scaled_cosine_to_each_outputs_vector() -> None:
    head = CosineHead(6, 4, 30.0)
    expected = 30 * functional.cosine_similarity(FEATURES[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(FEATURES), expected)
    torch.testing.assert_close(head(5 * FEATURES), head(FEATURES))  # the length of a vector says nothing
    assert head(FEATURES).abs().max() <= 30 + 1e-4


def test_a_vector_of_nothing_has_a_finite_cosine() -> None:
    assert CosineHead(6, 4, 30.0)(torch.zeros(1, 6)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("ordered", [True, False])
def test_outputs_of_a_shared_head_differ_by_the_same_in_every_row(ordered: bool) -> None:
    logits = SharedHead(6, 4, ordered=ordered)(FEATURES)
    steps = logits[:, :-1] - logits[:, 1:]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert (steps > 0).all()  # at the start, either kind
    torch.testing.assert_close(steps[0], torch.full((3,), 2 / 3))


def test_an_ordered_head_stays_in_order_whatever_is_learned() -> None:
    for seed in range(20):
        head = SharedHead(6, 5, ordered=True)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(5 * torch.randn_like(parameter))
        logits = head(FEATURES.double().to(torch.float32))
        assert (logits[:, :-1] >= logits[:, 1:]).all()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_shared_head_of_one_output_begins_at_zero(ordered: bool) -> None:
    assert SharedHead(6, 1, ordered=ordered).biases.tolist() == [0]


@pytest.mark.parametrize("kind", ["linear", "shared", "ordered"])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_a_head_folded_into_a_linear_layer_gives_the_same_outputs(kind: str, outputs: int) -> None:
    head = build_head(kind, 6, outputs, 1.0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    linear = as_linear(head)
    assert linear is not None
    torch.testing.assert_close(linear(FEATURES), head(FEATURES))


def test_a_cosine_head_is_no_linear_layer() -> None:
    assert as_linear(build_head("cosine", 6, 4, 10.0)) is None
