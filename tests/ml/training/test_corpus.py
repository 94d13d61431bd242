"""What one run computes and the next one finds: tokens and features, and nothing that belongs to other inputs."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.specs.comparison import Comparison
from ml.training import prepare as module
from ml.training.dry_run import dry_run
from ml.training.fit import fit
from ml.training.machine import Machine
from ml.training.prepare import Corpus, Prepared, prepare
from ml.training.run import CachePlacement, Placement, RunDirectory
from tests.ml.runs import MACHINE, fit_run, lay_out, read_events, weights_sha256
from tests.tiny_base import learnable_rows

FROZEN: dict[str, Any] = {"tuning": "frozen"}


class House:
    """Runs that share a cache, and how often each costly thing was done."""

    def __init__(self, folder: Path, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.base = base
        self.cache = folder / "cache"
        self.done: list[str] = []
        for name in ("read_texts", "token_arrays", "encode_features", "encode_rows"):
            self._count(name, patch)

    def _count(self, name: str, patch: pytest.MonkeyPatch) -> None:
        work = getattr(module, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.done.append(name)
            return work(*arguments, **named)

        patch.setattr(module, name, counted)

    def prepare(self, name: str, base: Path | None = None, **options: Any) -> Prepared:
        run = lay_out(self.folder / name, **options)
        placement = Placement(
            base_models={"tiny": base or self.base}, cache=CachePlacement(folder=self.cache, max_bytes=10**9)
        )
        return prepare(run, placement)

    def take(self) -> list[str]:
        """What was done since the last call."""
        done, self.done = self.done, []
        return done

    def fit(self, name: str, machine: Machine = MACHINE, **options: Any) -> str:
        """Train, and return a digest of the weights."""
        prepared = self.prepare(name, **options)
        fit(RunDirectory(self.folder / name), prepared, machine, {}, lambda: False)
        return weights_sha256(prepared.network)


@pytest.fixture
def house(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, tiny_base, monkeypatch)


def test_the_next_frozen_run_reads_and_encodes_nothing_and_comes_to_the_same(house: House) -> None:
    first = house.fit("first", **FROZEN)
    assert sorted(house.take()) == ["encode_features", "encode_rows", "read_texts", "token_arrays"]
    assert house.fit("again", **FROZEN) == first
    assert house.take() == []
    uncached = lay_out(house.folder / "uncached", **FROZEN)
    prepared = prepare(uncached, Placement(base_models={"tiny": house.base}))
    fit_run(uncached, prepared)
    assert weights_sha256(prepared.network) == first
    assert not any(file.name.startswith(".making") for file in uncached.path.iterdir())


def test_tokens_serve_a_full_run_after_a_frozen_one(house: House) -> None:
    house.fit("frozen", **FROZEN)
    house.take()
    house.prepare("full")
    assert house.take() == []


@pytest.mark.parametrize("kind", ["rows", "length", "pair"])
def test_other_inputs_are_read_and_encoded_anew(house: House, kind: str) -> None:
    pairs = [(text, "money back", label) for text, label in learnable_rows()]
    headers = ("text", "other", "label")
    house.fit("first", rows=pairs, headers=headers, **FROZEN)
    house.take()
    changed: dict[str, Any] = {
        "rows": {"rows": [("hello", "money back", "refund"), *pairs[1:]], "headers": headers},
        "length": {"rows": pairs, "headers": headers, "training": {"max_length": 8}},
        "pair": {"rows": pairs, "headers": headers, "columns": {"text_pair": "other"}},
    }[kind]
    house.prepare("other", **changed, **FROZEN)
    assert house.take() == ["read_texts", "token_arrays"]
    house.fit("other", **changed, **FROZEN)
    assert house.take() == ["encode_features", "encode_rows"]


def test_another_base_or_another_precision_encode_anew(house: House, tmp_path: Path) -> None:
    house.fit("first", **FROZEN)
    house.take()
    house.fit("other", replace(MACHINE, precision="bfloat16"), **FROZEN)
    assert house.take() == ["encode_features", "encode_rows"]
    house.fit("other", replace(MACHINE, threads=2, micro_batch_tokens=100), **FROZEN)
    assert house.take() == []  # they move the last bits alone
    base = shutil.copytree(house.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    house.fit("third", base=base, **FROZEN)
    assert "encode_features" in house.take()


def test_other_texts_get_their_own_tokens(house: House, tmp_path: Path) -> None:
    rows = learnable_rows(30)
    house.prepare("first", rows=rows)
    changed = [("hello thanks", "other"), *rows[1:]]
    cached = house.prepare("other", rows=changed).tokens
    alone = prepare(lay_out(tmp_path / "alone", rows=changed), Placement(base_models={"tiny": house.base})).tokens
    every = np.arange(30)
    assert cached.inputs_of(every)["input_ids"].tolist() == alone.inputs_of(every)["input_ids"].tolist()


def test_a_dry_run_encodes_its_own_rows_or_finds_those_of_a_job(house: House) -> None:
    def try_out(name: str) -> Any:
        return dry_run(house.prepare(name, **FROZEN), MACHINE, told=lambda _done, _steps: None, stop=lambda: False)

    alone = try_out("dry")
    assert "encode_features" not in house.take()
    house.fit("job", **FROZEN)
    house.take()
    after = try_out("after")
    assert house.take() == []
    assert after.terms[0].value.mean == pytest.approx(alone.terms[0].value.mean, rel=1e-5)


def test_a_comparison_finds_what_a_job_left(house: House) -> None:
    house.fit("job", rows=learnable_rows(60), **FROZEN)
    house.take()
    run = lay_out(house.folder / "comparison", losses=["cross_entropy", "focal"], **FROZEN)
    placement = Placement(base_models={"tiny": house.base}, cache=CachePlacement(folder=house.cache, max_bytes=10**9))
    corpus = Corpus(run, placement, run.read_spec(Comparison))
    corpus.features(lambda: pytest.fail("it was asked for its encoder"), MACHINE, lambda _done, _rows: None)
    assert house.take() == []


def test_a_cache_that_cannot_be_written_is_told_of_and_the_run_goes_on(house: House) -> None:
    house.cache.write_text("a file stands there")
    prepared = house.prepare("run")
    assert len(prepared.tokens.lengths) == 60
    (event,) = read_events(RunDirectory(house.folder / "run"), "message")
    assert event["level"] == "warning"
    assert "cannot be kept for later runs" in event["message"]


def test_texts_are_tokenized_some_at_a_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = house.prepare("whole").tokens
    monkeypatch.setattr("ml.data.rows.TEXTS_AT_ONCE", 7)
    sizes: list[int] = []
    read = module.read_texts

    def seen(*arguments: Any) -> Iterator[Any]:
        for texts in read(*arguments):
            sizes.append(len(texts))
            yield texts

    monkeypatch.setattr(module, "read_texts", seen)
    shutil.rmtree(house.cache)
    parts = house.prepare("parts").tokens
    assert sizes == [7] * 8 + [4]
    every = np.arange(60)
    assert parts.inputs_of(every)["input_ids"].tolist() == whole.inputs_of(every)["input_ids"].tolist()
