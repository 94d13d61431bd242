"""From a run directory to rows, tokens, targets and a network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.data.splits import Part
from ml.specs.errors import SpecError
from ml.training.prepare import encode_features, logits_of
from tests.ml.runs import MACHINE, lay_out, prepare_run
from tests.tiny_base import learnable_rows, write_csv


def test_targets_and_parts_belong_to_their_rows(tmp_path: Path, tiny_base: Path) -> None:
    rows = learnable_rows(30)
    prepared = prepare_run(lay_out(tmp_path, rows=rows), tiny_base)
    assert [prepared.resolved.labels[i] for i in prepared.targets.tolist()] == [label for _, label in rows]
    parts = [prepared.rows_of(part) for part in Part]
    assert sorted(np.concatenate(parts).tolist()) == list(range(30))
    assert [len(part) for part in parts] == [24, 3, 3]


def test_pairs_are_read_as_pairs(tmp_path: Path, tiny_base: Path) -> None:
    run = lay_out(tmp_path)
    rows = [(text, "hello there", label) for text, label in learnable_rows(12)]
    write_csv(tmp_path / "data.csv", rows, ("premise", "hypothesis", "label"))
    prepared = prepare_run(run, tiny_base)
    types = prepared.tokens.inputs_of(np.array([0]))["token_type_ids"][0]
    assert types.tolist()[-3:] == [1, 1, 1]  # hello there [SEP]
    assert types[0] == 0


def test_an_unknown_base_is_refused_before_anything_is_read(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no base model 'tinyy'.*Did you mean 'tiny'"):
        prepare_run(lay_out(tmp_path, model="tinyy"), tiny_base)


@pytest.mark.parametrize("budget", [1, 60, 8192])
def test_logits_come_in_the_order_of_the_rows_with_dropout_off(tmp_path: Path, tiny_base: Path, budget: int) -> None:
    prepared = prepare_run(lay_out(tmp_path), tiny_base)
    prepared.network.train()
    rows = np.random.default_rng(0).permutation(60)[:25]
    answers = logits_of(prepared.network, prepared.tokens, rows, replace(MACHINE, micro_batch_tokens=budget))
    assert prepared.network.training  # as it was
    prepared.network.eval()
    with torch.no_grad():
        for row, answer in zip(rows, answers, strict=True):
            alone = prepared.network(**prepared.tokens.inputs_of(np.array([row]))).logits[0].numpy()
            np.testing.assert_allclose(answer, alone, rtol=0, atol=1e-5)


def test_features_are_the_encoders_answers_row_by_row(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepare_run(lay_out(tmp_path, tuning={"type": "frozen"}), tiny_base)
    assert prepared.encoder is not None
    told: list[tuple[int, int]] = []
    machine = replace(MACHINE, micro_batch_tokens=100)
    features = encode_features(prepared.encoder, prepared.tokens, machine, lambda done, rows: told.append((done, rows)))
    for row in range(0, 60, 7):
        alone = prepared.encoder(**prepared.tokens.inputs_of(np.array([row])))
        torch.testing.assert_close(features.inputs_of(np.array([row]))["features"], alone, rtol=0, atol=1e-5)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (60, 60)
    assert len(told) > 3
