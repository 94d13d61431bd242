"""A tuning meets a base model: what is filled in, and what cannot work."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.ml.datasets import BERT_LAYERS, Dataset, base


@pytest.mark.parametrize(("layers", "is_fine"), [(1, True), (6, True), (7, False)])
def test_as_many_layers_train_as_there_are(layers: int, is_fine: bool) -> None:
    tuning = {"type": "top_layers", "layers": layers}
    if is_fine:
        assert Dataset().resolve(tuning=tuning).spec.tuning.model_dump() == tuning
    else:
        problem = Dataset().refuse(tuning=tuning)
        assert problem.pointer == "/tuning/layers"
        assert "'layers' is 7, and base model 'small' has 6" in problem.message


OF_LAYERS: list[dict[str, Any]] = [{"type": kind} for kind in ("top_layers", "lora", "adalora", "ia3", "adapter")]


@pytest.mark.parametrize("tuning", OF_LAYERS, ids=str)
def test_a_base_whose_layers_cannot_be_told_apart_is_for_other_tunings(tuning: dict[str, Any]) -> None:
    problem = Dataset().refuse(base(model_type="albert", linear_layers=()), tuning=tuning)
    assert (problem.pointer, problem.code) == ("/tuning/type", "unknown_architecture")
    assert "'small' (albert)" in problem.message
    assert "full, frozen or prompt" in problem.message


@pytest.mark.parametrize("width", [384, 768])
def test_top_layers_learn_at_the_rate_of_full_tuning(width: int) -> None:
    rates = {
        Dataset().resolve(base(hidden_size=width), tuning=tuning).spec.training.optimizer.learning_rate
        for tuning in ("full", "top_layers")
    }
    assert len(rates) == 1


def test_target_modules_that_were_left_open_are_all_linear_layers_of_the_encoder() -> None:
    tuning: Any = Dataset().resolve(tuning="lora").spec.tuning
    assert tuning.target_modules == list(BERT_LAYERS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["query"], ["attention.self.query"]),
        (["output.dense"], ["output.dense"]),  # it is called just so
        (["value", "dense", "value"], ["attention.self.value", *(name for name in BERT_LAYERS if "dense" in name)]),
    ],
)
@pytest.mark.parametrize("kind", ["lora", "adalora", "adapter"])
def test_target_modules_are_those_called_so_or_else_those_that_end_so(
    kind: str, given: list[str], expected: list[str]
) -> None:
    tuning: Any = Dataset().resolve(tuning={"type": kind, "target_modules": given}).spec.tuning
    assert tuning.target_modules == expected


DISTILBERT_LAYERS = (
    "attention.k_lin",
    "attention.out_lin",
    "attention.q_lin",
    "attention.v_lin",
    "ffn.lin1",
    "ffn.lin2",
)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (BERT_LAYERS, ["attention.output.dense", "output.dense"]),
        (DISTILBERT_LAYERS, ["attention.out_lin", "ffn.lin2"]),
        (("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"), ["attn.Wo", "mlp.Wo"]),
    ],
)
def test_adapters_come_after_attention_and_feed_forward(layers: tuple[str, ...], expected: list[str]) -> None:
    tuning: Any = Dataset().resolve(base(linear_layers=layers), tuning="adapter").spec.tuning
    assert tuning.target_modules == expected


def test_where_a_base_calls_its_layers_otherwise_the_places_of_adapters_must_be_said() -> None:
    other = base(model_type="other", linear_layers=("mix.out", "mlp.down"))
    problem = Dataset().refuse(other, tuning="adapter")
    assert (problem.pointer, problem.code) == ("/tuning/target_modules", "unknown_architecture")
    assert "set 'target_modules'. Each of its layers has: mix.out, mlp.down." in problem.message
    tuning = {"type": "adapter", "size": 8, "target_modules": ["mix.out", "mlp.down"]}
    assert Dataset().resolve(other, tuning=tuning).spec.tuning.model_dump() == tuning


@pytest.mark.parametrize("name", ["quer", "ery", "pooler.dense", "layer.0.attention.self.query"])
def test_an_unknown_target_module_is_told_those_that_exist(name: str) -> None:
    problem = Dataset().refuse(tuning={"type": "lora", "target_modules": ["key", name]})
    assert (problem.pointer, problem.code) == ("/tuning/target_modules/1", "unknown_module")
    assert f"no linear layer '{name}'" in problem.message
    assert "attention.self.query, attention.self.value, intermediate.dense, output.dense" in problem.message


@pytest.mark.parametrize("tuning", OF_LAYERS, ids=str)
def test_a_resolved_tuning_resolves_to_itself(tuning: dict[str, Any]) -> None:
    once = Dataset().resolve(tuning=tuning).spec
    assert Dataset().resolve(**once.model_dump()).spec == once


# ------------------------------------------------------------------------------------------------- ia3, prompt, prefix


@pytest.mark.parametrize(
    ("layers", "scaled", "inner"),
    [
        (BERT_LAYERS, ["attention.self.key", "attention.self.value"], ["output.dense"]),
        (DISTILBERT_LAYERS, ["attention.k_lin", "attention.v_lin"], ["ffn.lin2"]),
    ],
)
def test_ia3_scales_keys_values_and_what_is_inside_the_feed_forward_part(
    layers: tuple[str, ...], scaled: list[str], inner: list[str]
) -> None:
    tuning: Any = Dataset().resolve(base(linear_layers=layers), tuning="ia3").spec.tuning
    assert (tuning.target_modules, tuning.feedforward_modules) == (scaled, inner)


def test_where_keys_have_no_matrix_of_their_own_ia3_must_be_told_what_to_scale() -> None:
    modern = base(model_type="modernbert", linear_layers=("attn.Wo", "attn.Wqkv", "mlp.Wi", "mlp.Wo"))
    problem = Dataset().refuse(modern, tuning="ia3")
    assert (problem.pointer, problem.code) == ("/tuning/target_modules", "unknown_architecture")
    tuning: Any = Dataset().resolve(modern, tuning={"type": "ia3", "target_modules": ["Wqkv"]}).spec.tuning
    assert (tuning.target_modules, tuning.feedforward_modules) == (["attn.Wqkv"], ["mlp.Wo"])


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize(("tokens", "is_fine"), [(384, True), (385, False)])
def test_virtual_tokens_and_a_text_fit_what_the_base_reads(kind: str, tokens: int, is_fine: bool) -> None:
    body: dict[str, Any] = {"tuning": {"type": kind, "virtual_tokens": tokens}, "training": {"max_length": 128}}
    if is_fine:
        Dataset().resolve(**body)
    else:
        problem = Dataset().refuse(**body)
        assert problem.pointer == "/tuning/virtual_tokens"
        assert "385 virtual tokens and training.max_length 128 are more than the 512" in problem.message


def test_a_prompt_is_for_every_base_and_a_prefix_for_those_that_take_keys_and_values() -> None:
    other = base(model_type="distilbert")
    Dataset().resolve(other, tuning="prompt")
    problem = Dataset().refuse(other, tuning="prefix")
    assert (problem.pointer, problem.code) == ("/tuning/type", "unknown_architecture")
    assert "is a 'distilbert'" in problem.message
    assert "bert, camembert" in problem.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 12}, "initial_rank is 12, and must be more than rank, which is 12"),
        ({"initial": 0.6, "final": 0.4}, "initial 0.6 and final 0.4 leave no steps"),
    ],
)
def test_adalora_needs_ranks_to_take_and_steps_to_do_it_in(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Dataset().resolve(tuning={"type": "adalora", **fields})


@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3", "adapter", "prompt", "prefix"])
def test_few_weights_learn_faster_than_many(kind: str) -> None:
    for width in (384, 768):
        full, few = (
            Dataset().resolve(base(hidden_size=width), tuning=tuning).spec.training.optimizer.learning_rate
            for tuning in ("full", kind)
        )
        assert full is not None
        assert few is not None
        assert few >= 3 * full


def test_an_unknown_part_to_freeze_is_told_those_there_are() -> None:
    problem = Dataset().refuse(base(layers=3), tuning={"type": "full", "freeze": ["embeddings", "layers.1"]})
    assert (problem.pointer, problem.code) == ("/tuning/freeze/1", "unknown_part")
    assert "Did you mean 'layer.1'?" in problem.message
    assert problem.message.endswith("There are: embeddings, layer.0, layer.1, layer.2.")


def test_a_base_whose_layers_cannot_be_told_apart_freezes_its_embeddings_alone() -> None:
    albert = base(model_type="albert", linear_layers=())
    problem = Dataset().refuse(albert, tuning={"type": "full", "freeze": ["layer.0"]})
    assert problem.message.endswith("There are: embeddings.")
    Dataset().resolve(albert, tuning={"type": "full", "freeze": ["embeddings"]})


def test_all_but_the_head_may_be_frozen() -> None:
    every = ["embeddings", "layer.0", "layer.1", "layer.2"]
    assert Dataset().resolve(base(layers=3), tuning={"type": "full", "freeze": every}).warnings == ()


@pytest.mark.parametrize("kind", ["frozen", "prompt", "prefix"])
def test_layer_decay_needs_layers_that_train(kind: str) -> None:
    training = {"optimizer": {"type": "adamw", "layer_decay": 0.9}}
    problem = Dataset().refuse(tuning=kind, training=training)
    assert problem.pointer == "/training/optimizer/layer_decay"
    assert f"'layer_decay' is 0.9, but tuning '{kind}' trains no layer" in problem.message
    assert Dataset().resolve(tuning="lora", training=training).spec.training.optimizer.layer_decay == 0.9


def test_a_frozen_run_has_nothing_to_compile() -> None:
    problem = Dataset().refuse(tuning="frozen", training={"compile": True})
    assert (problem.pointer, "head alone" in problem.message) == ("/training/compile", True)
    assert Dataset().resolve(tuning="lora", training={"compile": True}).spec.training.compile
