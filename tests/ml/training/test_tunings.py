"""Every tuning: it learns, only what it names changes, and what was trained is what is saved and served."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ml.artifact.description import ONNX, read_description
from ml.artifact.merge import write_merged
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier
from ml.training.errors import StoppedError
from ml.training.export import export_artifact
from ml.training.prepare import Prepared, logits_of
from ml.training.run import RunDirectory
from tests.ml.runs import (
    MACHINE,
    fit_run,
    lay_out,
    prepare_run,
    read_events,
    series,
    stop_after,
    trained_logits,
    weights_sha256,
)
from tests.tiny_base import learnable_rows

TEXTS = [*(text for text, _ in learnable_rows(9, seed=9)), "where is my parcel " * 30, ""]
HEAD = r"classifier\.|pooler\."


@dataclass(frozen=True)
class Kind:
    """A tuning, and what is expected of it on the tiny base of two layers."""

    spec: dict[str, Any]
    trains: str  # the parameters that train beside the head
    changes: str | None  # the weights of the saved model that differ from the base's; none: transformers can't load it
    rate: float = 1e-2
    may_stay: str = r"$^"  # of these, what may end as it began


KINDS = {
    "top_layers": Kind({"type": "top_layers", "layers": 1}, r"encoder\.layer\.1\.", r"encoder\.layer\.1\."),
    "lora": Kind(
        {"type": "lora", "rank": 4, "dropout": 0.1, "target_modules": ["query", "value", "output.dense"]},
        *(r"\.lora_[AB]\.", r"self\.(query|value)\.weight|\.\d\.output\.dense\.weight"),
    ),
    "adapter": Kind({"type": "adapter", "size": 16}, r"output\.dense\.1\.|LayerNorm", None),
    "ia3": Kind(
        {"type": "ia3"},
        *(r"\.ia3_l\.", r"self\.(key|value)\.weight|\.\d\.output\.dense\.weight"),  # biases are 0 at first
        rate=3e-2,
    ),
    "adalora": Kind(
        {"type": "adalora", "rank": 2, "initial_rank": 4, "interval": 2, "dropout": 0.1},
        *(r"\.lora_[ABE]\.", r"dense\.weight|self\..*\.weight"),
        rate=3e-2,
        may_stay=r"\.lora_E\.|encoder\.layer\.\d\..*\.weight",  # of a matrix that lost all its rank
    ),
    "prompt": Kind({"type": "prompt", "virtual_tokens": 5}, r"\.prompt$", None, rate=3e-2),
    "prefix": Kind({"type": "prefix", "virtual_tokens": 5}, r"\.prefix$", None, rate=3e-2),
}
MERGED = [name for name, kind in KINDS.items() if kind.changes is not None]
LASTING = [name for name, kind in KINDS.items() if kind.changes is None]


@dataclass(frozen=True)
class Trained:
    """A run from its first weights to its artifact."""

    run: RunDirectory
    prepared: Prepared
    before: dict[str, Tensor]  # the weights
    after: dict[str, Tensor]
    losses: tuple[float, float]  # of all rows, without dropout, before and after
    answers: NDArray[np.float32]  # of the network as it was trained

    @property
    def is_adapted(self) -> bool:
        return read_description(self.run.artifact).is_adapted


class Trainer:
    """Trains each kind once."""

    def __init__(self, folder: Path, base: Path) -> None:
        self._folder, self._base = folder, base
        self._made: dict[str, Trained] = {}

    def lay_out(self, name: str, kind: str, **spec: Any) -> RunDirectory:
        training = {"epochs": 10, "dropout": 0.0, "optimizer": {"type": "adamw", "learning_rate": KINDS[kind].rate}}
        training |= spec.pop("training", {})
        return lay_out(self._folder / name, training=training, tuning=KINDS[kind].spec, **spec)

    def prepare(self, run: RunDirectory) -> Prepared:
        return prepare_run(run, self._base)

    def __call__(self, kind: str) -> Trained:
        if kind not in self._made:
            run = self.lay_out(kind, kind)
            prepared = self.prepare(run)
            before, loss = copy_of(prepared), loss_of(prepared)
            fitted = fit_run(run, prepared)
            after, losses, answers = copy_of(prepared), (loss, loss_of(prepared)), trained_logits(prepared, TEXTS)
            export_artifact(run, prepared, fitted, dataset_sha256=None)
            self._made[kind] = Trained(run, prepared, before, after, losses, answers)
        return self._made[kind]


def copy_of(prepared: Prepared) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in prepared.network.named_parameters()}


def loss_of(prepared: Prepared) -> float:
    outputs = logits_of(prepared.network, prepared.tokens, np.arange(60), MACHINE)
    return prepared.task.evaluate(outputs, prepared.targets.labels.numpy())["loss"]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("tunings"), tiny_base)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(trainer: Trainer, kind: str) -> None:
    before, after = trainer(kind).losses
    assert after < 0.85 * before


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_names_and_the_head_change_and_nothing_else(trainer: Trainer, kind: str) -> None:
    trained = trainer(kind)
    changed = {name for name, tensor in trained.before.items() if not torch.equal(tensor, trained.after[name])}
    expected = re.compile(rf"{KINDS[kind].trains}|{HEAD}")
    named = {name for name in trained.before if expected.search(name)}
    assert changed <= named
    assert not [name for name in named - changed if not re.search(KINDS[kind].may_stay, name)]
    assert any("classifier" in name for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_served_answers_as_the_network_did_that_was_trained(trainer: Trainer, kind: str) -> None:
    trained = trainer(kind)
    runtime = trained.run.base if trained.is_adapted else trained.run.artifact
    served = OnnxClassifier(trained.run.artifact, runtime, OnnxBackend(runtime / ONNX, 1))
    answers = served.logits(served.tokenize(TEXTS))
    assert np.ptp(trained.answers, axis=0).min() > 0.1  # not the same to every text
    np.testing.assert_allclose(answers, trained.answers, rtol=0, atol=1e-4)


def test_what_is_of_low_rank_shares_the_network_of_its_base(trainer: Trainer) -> None:
    assert {kind for kind in MERGED if trainer(kind).is_adapted} == {"lora", "adalora"}


@pytest.mark.parametrize("kind", MERGED)
def test_transformers_loads_what_was_trained(trainer: Trainer, kind: str, tiny_base: Path, tmp_path: Path) -> None:
    trained = trainer(kind)
    folder = trained.run.artifact
    assert read_description(folder).loads_in_transformers
    if trained.is_adapted:
        folder = write_merged(folder, trained.run.base, tmp_path / "merged")
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    assert not any(loading[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = trained.prepared.tokens.like(trained.prepared.base, TEXTS, 32)
    with torch.no_grad():
        answers = model.eval()(**tokens.inputs_of(np.arange(len(TEXTS)))).logits.numpy()
    np.testing.assert_allclose(answers, trained.answers, rtol=0, atol=1e-4)
    base, saved = load_file(tiny_base / "model.safetensors"), load_file(folder / "model.safetensors")
    expected = re.compile(rf"{KINDS[kind].changes}|pooler\.")
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, saved[f"bert.{name}"])}
    named = {name for name in base if expected.search(name)}
    assert changed <= named
    assert len(named - changed) < len(named) / 2
    assert not [name for name in named - changed if not re.search(KINDS[kind].may_stay, name)]


@pytest.mark.parametrize("kind", LASTING)
def test_what_transformers_cannot_express_is_not_offered_to_it(trainer: Trainer, kind: str) -> None:
    trained = trainer(kind)
    assert not read_description(trained.run.artifact).loads_in_transformers
    with pytest.raises((OSError, ValueError)):
        AutoModelForSequenceClassification.from_pretrained(trained.run.artifact, local_files_only=True)
    held = load_file(trained.run.artifact / "model.safetensors")
    state = {name.removeprefix("model."): tensor for name, tensor in trained.after.items()}
    trains = re.compile(rf"{KINDS[kind].trains}|{HEAD}")
    assert held.keys() == {name for name in state if trains.search(f"model.{name}")}
    assert all(torch.equal(held[name], state[name]) for name in held)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_twice_ends_as_one_that_never_was(trainer: Trainer, kind: str) -> None:
    training = {"epochs": 3, "dropout": 0.1, "early_stopping": {"metric": "loss", "patience": 2}}
    whole = trainer.lay_out(f"whole-{kind}", kind, training=training)
    expected = trainer.prepare(whole)
    fit_run(whole, expected)
    run = trainer.lay_out(f"stopped-{kind}", kind, training=training)
    for step in (4, 15):
        with pytest.raises(StoppedError):
            fit_run(run, trainer.prepare(run), stop_after(run, step))
    prepared = trainer.prepare(run)
    fit_run(run, prepared)
    assert [event["data"]["step"] for event in read_events(run, "status")] == [4, 15]
    assert series(run, "train/loss") == series(whole, "train/loss")
    assert weights_sha256(prepared.network) == weights_sha256(expected.network)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_what_trains_alone(trainer: Trainer, kind: str) -> None:
    run = trainer.lay_out(f"checkpoint-{kind}", kind)
    prepared = trainer.prepare(run)
    with pytest.raises(StoppedError):
        fit_run(run, prepared, stop_after(run, 2))
    held = load_file(run.checkpoints / "step-00000002" / "model.safetensors")
    expected = {name for name, parameter in prepared.network.named_parameters() if parameter.requires_grad}
    assert {name for name in held if not name.endswith("_extra_state")} == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["fgm", "r_drop", "supcon"])
def test_terms_that_train_the_encoder_reach_it(trainer: Trainer, kind: str, term: str) -> None:
    loss = {"terms": [{"loss": "cross_entropy"}, {"loss": term}]}
    run = trainer.lay_out(f"{term}-{kind}", kind, loss=loss, training={"max_steps": 2, "dropout": 0.1})
    prepared = trainer.prepare(run)
    before = copy_of(prepared)
    fit_run(run, prepared)
    values = series(run, f"train/loss/{term}")
    assert all(value > 0 for value in values.values())
    if term == "fgm":  # the same rows with their words moved: a harder task
        assert values[1] > series(run, "train/loss/cross_entropy")[1]
    after = copy_of(prepared)
    assert any(not torch.equal(before[name], after[name]) for name in before if not re.search(HEAD, name))


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_do_not_train_are_left_whole(trainer: Trainer, kind: str) -> None:
    prepared: Any = trainer.prepare(trainer.lay_out(f"words-{kind}", kind))
    assert len(prepared.network.model.get_input_embeddings().weight) == prepared.network.model.config.vocab_size
