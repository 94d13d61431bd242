"""Texts go through layers that do not train once, and the run comes to what it would have come to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml.artifact.description import ONNX
from ml.comparisons import resolve_comparison
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier
from ml.specs.comparison import Comparison
from ml.training import prepare as module
from ml.training.compare import compare
from ml.training.errors import StoppedError
from ml.training.export import export_artifact
from ml.training.machine import Machine
from ml.training.prepare import Prepared, prepare
from ml.training.run import CachePlacement, Placement, RunDirectory
from tests.ml.runs import (
    MACHINE,
    fit_run,
    lay_out,
    read_events,
    series,
    stop_after,
    trained_logits,
    weights_sha256,
)
from tests.tiny_base import learnable_rows

TOP: dict[str, Any] = {"tuning": {"type": "top_layers", "layers": 1}}
PAIRS = [(text, "money back", label) for text, label in learnable_rows()]
KINDS: dict[str, dict[str, Any]] = {
    "top layers": TOP,
    "frozen parts": {"tuning": {"type": "full", "freeze": ["embeddings", "layer.0"]}},
    "pairs": {**TOP, "rows": PAIRS, "headers": ("text", "other", "label"), "columns": {"text_pair": "other"}},
    "two passes": {**TOP, "loss": {"terms": [{"loss": "cross_entropy"}, {"loss": "r_drop"}]}},
}


class House:
    """Runs that share a cache, and how often layers ran by themselves over all rows."""

    def __init__(self, folder: Path, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.base = folder, base
        self.encoded = 0
        work = module.encode_hidden

        def counted(*arguments: Any) -> Any:
            self.encoded += 1
            return work(*arguments)

        patch.setattr(module, "encode_hidden", counted)

    def placement(self, max_bytes: int) -> Placement:
        """max_bytes: of the cache; 0: there is none."""
        cache = CachePlacement(folder=self.folder / "cache", max_bytes=max_bytes) if max_bytes else None
        return Placement(base_models={"tiny": self.base}, cache=cache)

    def prepare(self, name: str, max_bytes: int = 10**9, **options: Any) -> tuple[RunDirectory, Prepared]:
        run = lay_out(self.folder / name, **options)
        return run, prepare(run, self.placement(max_bytes))

    def fit(self, name: str, max_bytes: int = 10**9, machine: Machine = MACHINE, **options: Any) -> Prepared:
        run, prepared = self.prepare(name, max_bytes, **options)
        fit_run(run, prepared, machine=machine)
        return prepared

    def losses(self, name: str) -> dict[int, float]:
        return series(RunDirectory(self.folder / name), "train/loss")


@pytest.fixture
def house(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, tiny_base, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_and_losses_are_those_of_a_run_that_keeps_nothing(house: House, kind: str) -> None:
    # AdamW makes whole steps of last bits where a gradient is 0 in exact arithmetic, as that of the keys' biases is.
    training = {"optimizer": {"type": "sgd", "learning_rate": 0.01}}
    plain = house.fit("plain", 0, training=training, **KINDS[kind])
    assert house.encoded == 0
    kept = house.fit("kept", training=training, **KINDS[kind])
    assert house.encoded == 1
    expected = plain.network.state_dict()
    assert kept.network.state_dict().keys() == expected.keys()
    for name, weights in kept.network.state_dict().items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=1e-5)
    assert house.losses("kept") == pytest.approx(house.losses("plain"), abs=1e-5)


def test_it_is_so_in_bfloat16(house: House) -> None:
    machine = replace(MACHINE, precision="bfloat16")
    house.fit("plain", 0, machine, **TOP)
    kept = house.fit("kept", machine=machine, **TOP)
    assert kept.frozen_layers is not None
    table = kept.corpus.hidden(kept.frozen_layers, machine, lambda _done, _rows: None)
    assert table is not None
    assert table.inputs_of(np.arange(2))["hidden"].dtype == torch.bfloat16
    assert house.losses("kept") == pytest.approx(house.losses("plain"), abs=2e-3)


def test_a_run_that_was_stopped_within_an_epoch_comes_to_the_same_bits(house: House) -> None:
    whole = house.fit("whole", **TOP)
    run, stopped = house.prepare("stopped", **TOP)
    with pytest.raises(StoppedError):
        fit_run(run, stopped, stop_after(run, 8))
    _, resumed = house.prepare("stopped", **TOP)
    fit_run(run, resumed)
    assert weights_sha256(resumed.network) == weights_sha256(whole.network)
    assert house.encoded == 1


def test_the_next_run_finds_them_and_one_of_other_inputs_does_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_ENCODED_AT_ONCE", 100)
    first = weights_sha256(house.fit("first", **TOP).network)
    assert weights_sha256(house.fit("again", **TOP).network) == first
    assert house.encoded == 1
    house.fit("other texts", rows=learnable_rows(seed=1), **TOP)
    assert house.encoded == 2
    house.fit("other precision", machine=replace(MACHINE, precision="bfloat16"), **TOP)
    assert house.encoded == 3


def test_what_is_served_answers_as_the_run_that_keeps_nothing(house: House) -> None:
    texts = ["where is my parcel", "money back " * 30, ""]
    plain = trained_logits(house.fit("plain", 0, **TOP), texts)
    run, prepared = house.prepare("kept", **TOP)
    export_artifact(run, prepared, fit_run(run, prepared), dataset_sha256=None)
    assert house.encoded == 1
    served = OnnxClassifier(run.artifact, run.artifact, OnnxBackend(run.artifact / ONNX, 1))
    np.testing.assert_allclose(served.logits(served.tokenize(texts)), plain, rtol=0, atol=1e-4)


def test_what_is_too_large_for_the_cache_is_not_kept_and_that_is_told(house: House) -> None:
    house.fit("run", 50_000, **TOP)
    assert house.encoded == 0
    told = [event["message"] for event in read_events(RunDirectory(house.folder / "run"), "message")]
    assert [message for message in told if "the frozen layers run in every epoch" in message]


@pytest.mark.parametrize(
    "options",
    [
        {"training": {"augmentation": [{"type": "mask"}]}},
        {"loss": {"terms": [{"loss": "cross_entropy"}, {"loss": "fgm"}]}},
        {"training": {"max_steps": 2}},
        {"tuning": {"type": "top_layers", "layers": 2}},
        {"tuning": "lora"},
        {"tuning": "full"},
    ],
    ids=["augmentation", "fgm", "less than an epoch", "every layer trains", "lora", "full"],
)
def test_nothing_is_kept_where_the_layers_see_or_make_something_else_each_time(
    house: House, options: dict[str, Any]
) -> None:
    house.fit("run", **{**TOP, **options})
    assert house.encoded == 0


def test_a_comparison_runs_them_once_for_all_its_runs(house: House) -> None:
    run = lay_out(house.folder / "run", losses=["cross_entropy", "focal"], seeds=2, training={"epochs": 1}, **TOP)
    corpus = module.Corpus(run, house.placement(10**9), run.read_spec(Comparison))
    comparison = resolve_comparison(run.read_spec(Comparison), corpus.facts, corpus.base_facts, corpus.cells)
    compare(run, corpus, comparison, MACHINE, {}, lambda: False)
    assert house.encoded == 1
    assert any("encoded" in event["data"] for event in read_events(run, "progress"))
