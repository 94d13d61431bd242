"""Base models by name, and what is read of them before a job exists."""

import json
import shutil
from pathlib import Path

import pytest

from ml.bases import DEFAULT_BASE, base_sha256, find_base, read_base_facts
from ml.specs.errors import SpecError
from tests.ml.runs import flip_a_bit
from tests.tiny_base import HIDDEN_SIZE, MAX_LENGTH, vocabulary


def test_the_bundled_base_is_there_without_a_network() -> None:
    facts = read_base_facts(DEFAULT_BASE, find_base(DEFAULT_BASE, {}))
    assert (facts.model_type, facts.hidden_size, facts.layers, facts.max_length) == ("bert", 384, 6, 512)
    assert 22_000_000 < facts.parameters < 23_000_000
    assert (facts.heads, facts.dropout) == (12, 0.1)


def test_a_registered_base_is_found_and_read(tiny_base: Path) -> None:
    assert find_base("tiny", {"tiny": tiny_base}) == tiny_base
    facts = read_base_facts("tiny", tiny_base)
    assert (facts.hidden_size, facts.layers, facts.heads, facts.max_length) == (HIDDEN_SIZE, 2, 2, MAX_LENGTH)
    assert facts.vocabulary == len(vocabulary())


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "classifier_dropout": None}, 0.2),
        ({"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "classifier_dropout_prob": 0.1}, 0.1),  # ALBERT
        ({"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}, 0.0),
        ({}, None),
    ],
)
def test_the_dropout_of_a_base_is_the_greatest_its_config_names(
    tiny_base: Path, tmp_path: Path, named: dict[str, float | None], expected: float | None
) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    kept = {key: value for key, value in config.items() if "dropout" not in key}
    (copy / "config.json").write_text(json.dumps(kept | named))
    assert read_base_facts("tiny", copy).dropout == expected


def test_an_unknown_base_is_told_which_one_is_near() -> None:
    with pytest.raises(SpecError, match="Did you mean 'minilm'") as caught:
        find_base("minilmm", {})
    assert (caught.value.problems[0].pointer, caught.value.problems[0].code) == ("/model", "model_not_found")


@pytest.mark.parametrize("name", ["../tiny", "/etc", "https://example.com/model", "C:\\model"])
def test_a_path_or_url_is_never_a_base(name: str) -> None:
    with pytest.raises(SpecError, match="never taken from a request"):
        find_base(name, {})


def test_a_path_is_no_base_even_where_it_leads_to_one(tiny_base: Path) -> None:
    with pytest.raises(SpecError):
        find_base(str(tiny_base), {"tiny": tiny_base})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_digest_of_a_base_changes_with_each_file_that_answers_depend_on(
    tiny_base: Path, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    assert base_sha256(copy) == base_sha256(tiny_base)
    flip_a_bit(copy / name)
    assert base_sha256(copy) != base_sha256(tiny_base)


def test_the_layers_of_a_base_are_named_alike(tiny_base: Path) -> None:
    expected = {f"attention.self.{name}" for name in ("query", "key", "value")}
    expected |= {"attention.output.dense", "intermediate.dense", "output.dense"}
    assert set(read_base_facts("tiny", tiny_base).linear_layers) == expected


def test_a_base_that_uses_one_layer_again_and_again_has_none_to_tell_apart(tmp_path: Path, tiny_base: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert read_base_facts("tiny", copy).linear_layers == ()
