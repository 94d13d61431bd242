"""Compact vocabularies: the same run to the last digits, every weight, at half the work."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml.models.classifier import NativeClassifier
from ml.models.vocabulary import CompactEmbedding, CompactVocabulary
from ml.training.prepare import Prepared
from tests.ml.runs import fit_run, lay_out, prepare_run, read_events

ADAMW = {"type": "adamw", "learning_rate": 1e-3, "weight_decay": 0.5}
SGD = {"type": "sgd", "learning_rate": 0.1, "weight_decay": 0.05}
LION = {"type": "lion", "learning_rate": 1e-4, "weight_decay": 0.9}


def words_of(prepared: Prepared) -> Tensor:
    network: Any = prepared.network
    found: Tensor = network.model.get_input_embeddings().weight
    return found


def trained(folder: Path, base: Path, **training: Any) -> dict[str, Tensor]:
    run = lay_out(folder, training={"epochs": 4, **training})
    prepared = prepare_run(run, base)
    fit_run(run, prepared)
    return dict(prepared.network.state_dict())


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": ADAMW},
        {"optimizer": ADAMW, "early_stopping": {"patience": 1}, "epochs": 6},
        {"optimizer": SGD},
        {"optimizer": {**SGD, "nesterov": True}, "schedule": "cosine_restarts"},
        {"optimizer": LION},
        {"optimizer": {"type": "adam", "learning_rate": 1e-3}},
        {"optimizer": {"type": "adamax", "learning_rate": 1e-3}},
        {"optimizer": ADAMW, "max_steps": 5, "schedule": {"type": "constant", "warmup": 0.5}},
        {"optimizer": {**ADAMW, "learning_rate": 0.01, "layer_decay": 0.7}, "schedule": "one_cycle"},
        {"optimizer": ADAMW, "ema_decay": 0.9},
        {"optimizer": SGD, "ema_decay": 0.9, "early_stopping": {"patience": 1}, "epochs": 6},
    ],
    ids=[
        *("adamw", "best of early stopping", "sgd", "nesterov", "lion", "adam", "adamax", "max steps"),
        *("layer decay", "average", "best average"),
    ],
)
def test_every_weight_is_as_without_it(
    training: dict[str, Any], tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = trained(tmp_path / "compact", tiny_base, **training)
    monkeypatch.setattr(NativeClassifier, "compact_words", lambda _network, _used: None)
    whole = trained(tmp_path / "whole", tiny_base, **training)
    assert compact.keys() == whole.keys()
    assert len(whole["model.bert.embeddings.word_embeddings.weight"]) > 100
    for name, tensor in whole.items():
        torch.testing.assert_close(compact[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_holds_the_words_of_its_texts_alone(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepare_run(lay_out(tmp_path), tiny_base)
    used = {int(i) for row in range(60) for i in prepared.tokens.inputs_of(np.array([row]))["input_ids"].flatten()}
    network: Any = prepared.network
    assert len(words_of(prepared)) == len(used | {prepared.tokens.pad_id}) + 1 < network.model.config.vocab_size


@pytest.mark.parametrize(
    "optimizer",
    ["lamb", "adafactor", {"type": "adam", "weight_decay": 0.1}, {"type": "adamax", "weight_decay": 0.1}],
    ids=str,
)
def test_an_optimizer_that_treats_untouched_words_otherwise_keeps_them_all(
    optimizer: Any, tmp_path: Path, tiny_base: Path
) -> None:
    prepared = prepare_run(lay_out(tmp_path, training={"optimizer": optimizer}), tiny_base)
    network: Any = prepared.network
    assert len(words_of(prepared)) == network.model.config.vocab_size


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, tiny_base: Path) -> None:
    whole = trained(tmp_path / "whole", tiny_base, optimizer=ADAMW)
    run = lay_out(tmp_path / "stopped", training={"epochs": 4, "optimizer": ADAMW})
    with pytest.raises(Exception, match="stopped"):
        fit_run(run, prepare_run(run, tiny_base), lambda: len(read_events(run, "metrics")) > 10)
    prepared = prepare_run(run, tiny_base)
    fit_run(run, prepared)
    for name, tensor in prepared.network.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


class Model:
    """Words, and nothing else."""

    def __init__(self) -> None:
        self.words: nn.Module = nn.Embedding(10, 4, padding_idx=1)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def set_input_embeddings(self, words: nn.Module) -> None:
        self.words = words


def test_ids_keep_their_numbers_and_padding_learns_nothing() -> None:
    whole = nn.Embedding(10, 4, padding_idx=1)
    compact = CompactEmbedding(whole, torch.tensor([1, 4, 7]))
    ids = torch.tensor([[7, 4, 1]])
    assert torch.equal(compact(ids), whole(ids))
    compact(ids).sum().backward()
    assert compact.weight.grad is not None
    assert compact.weight.grad[:, 0].tolist() == [0, 1, 1, 0]
    with pytest.raises(IndexError):
        compact(torch.tensor([[2]]))


def test_untouched_rows_take_what_the_ones_became_and_touched_ones_what_they_learned() -> None:
    model = Model()
    before = cast("nn.Embedding", model.words).weight.detach().clone()
    used = torch.tensor([0, 1, 7])
    vocabulary = CompactVocabulary(model, used)
    with torch.no_grad():
        cast("CompactEmbedding", model.words).weight[:-1] += 1
        cast("CompactEmbedding", model.words).weight[-1] *= 0.5
    vocabulary.restore()
    after = cast("nn.Embedding", model.words).weight
    touched = torch.zeros(10, dtype=torch.bool)
    touched[used] = True
    assert torch.equal(after[touched], before[touched] + 1)
    assert torch.equal(after[~touched], before[~touched] * 0.5)
