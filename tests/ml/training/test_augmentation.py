"""Augmented runs: what a step minimises, that stops and cuts leave no trace, and that only training rows change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from ml.data.splits import Part
from ml.training.dry_run import dry_run
from ml.training.errors import StoppedError
from ml.training.prepare import Prepared
from ml.training.step import StepReport, backward_step
from tests.ml.runs import MACHINE, fit_run, lay_out, prepare_run, series, stop_after, weights_sha256
from tests.tiny_base import LABEL_WORDS, learnable_rows

EVERY_WAY = ["eda", "mask", {"type": "mixup", "alpha": 1.0}]
MIXUP = [{"type": "mixup", "alpha": 1.0}]
WEIGHTS = dict(zip(sorted(LABEL_WORDS), (0.3, 1.0, 4.0), strict=True))
WEIGHTED = {"type": "cross_entropy", "class_weights": WEIGHTS}
PAIRS = [
    (text, other, label) for (text, label), (other, _) in zip(learnable_rows(), learnable_rows(seed=1), strict=True)
]
PAIRED: dict[str, Any] = {"rows": PAIRS, "headers": ("text", "text_pair", "label")}


def prepared_for(folder: Path, base: Path, augmentation: list[Any], **options: Any) -> Prepared:
    training = {"augmentation": augmentation, "max_steps": 8, **options.pop("training", {})}
    return prepare_run(lay_out(folder, training=training, **options), base)


def step_of(prepared: Prepared, number: int, *, at_once: int | None = None, budget: int = 10**6) -> StepReport:
    """The gradient of the first rows as of step `number`, from nothing."""
    prepared.network.zero_grad()
    batch = prepared.batch_of(prepared.rows_of(Part.TRAIN)[:16], number, prepared.tokens)
    machine = replace(MACHINE, micro_batch_tokens=budget)
    return backward_step(prepared.network, prepared.objective, batch, machine, at_once, 0.0)


def gradient_of(prepared: Prepared) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in prepared.network.parameters() if p.grad is not None])


# ----------------------------------------------------------------------------------------------------------------- step


@pytest.mark.parametrize("loss", [WEIGHTED, {"terms": [{"loss": WEIGHTED}, {"loss": "focal"}], "combine": "pcgrad"}])
def test_a_step_is_the_same_however_it_is_cut(tmp_path: Path, tiny_base: Path, loss: Any) -> None:
    prepared = prepared_for(tmp_path, tiny_base, EVERY_WAY, loss=loss, training={"dropout": 0.0}, **PAIRED)
    prepared.network.double()
    whole = step_of(prepared, 3)
    gradient = gradient_of(prepared)
    for at_once, budget in ((1, 10**6), (5, 10**6), (None, 100)):
        cut = step_of(prepared, 3, at_once=at_once, budget=budget)
        assert cut.loss == pytest.approx(whole.loss, rel=1e-9)
        torch.testing.assert_close(gradient_of(prepared), gradient, rtol=1e-8, atol=1e-12)
    assert step_of(prepared, 4).loss != pytest.approx(whole.loss, rel=1e-3)


def test_no_pass_is_over_its_tokens_though_lengths_change(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base, [{"type": "eda", "alpha": 0.9, "operations": ["insertion"]}])
    rows = prepared.rows_of(Part.TRAIN)[:16]
    batch = prepared.batch_of(rows, 0, prepared.tokens)
    assert (batch.lengths > prepared.tokens.lengths[rows]).any()
    for places in batch.cut(replace(MACHINE, micro_batch_tokens=60), None):
        inputs, _ = batch.part(places, MACHINE)
        assert inputs["input_ids"].numel() <= 60
        assert inputs["attention_mask"].sum(1).tolist() == batch.lengths[places].tolist()


def test_mixup_minimises_each_rows_two_losses_by_their_shares(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base, MIXUP, loss=WEIGHTED, training={"dropout": 0.0})
    assert prepared.augmenter is not None
    rows = prepared.rows_of(Part.TRAIN)[:16]
    mixture = prepared.augmenter.augment(rows, 3).mixture
    assert mixture is not None
    labels, weights = prepared.targets.labels.numpy(), list(WEIGHTS.values())
    words = prepared.network.model.get_input_embeddings()
    above, below = 0.0, 0.0
    for row, partner, share in zip(rows, rows[mixture.partners], mixture.shares, strict=True):
        ids = [prepared.tokens.take(np.array([one]))["ids"].tolist() for one in (row, partner)]
        embedded = torch.zeros(1, max(map(len, ids)), 32)
        for one, part in zip(ids, (share, 1 - share), strict=True):
            embedded[0, : len(one)] += part * words(torch.tensor(one)).detach()
        logits = prepared.network.model(inputs_embeds=embedded).logits.detach()
        for one, part in ((row, share), (partner, 1 - share)):
            weight = part * weights[labels[one]]
            above += weight * float(functional.cross_entropy(logits, torch.tensor([labels[one]])))
            below += weight
    assert step_of(prepared, 3).loss == pytest.approx(above / below, rel=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "prompt", "prefix", "top_layers"])
def test_mixtures_reach_the_words_of_every_tuning(tmp_path: Path, tiny_base: Path, tuning: str) -> None:
    mixed = prepared_for(tmp_path / "mixed", tiny_base, MIXUP, tuning=tuning, training={"dropout": 0.0})
    plain = prepared_for(tmp_path / "plain", tiny_base, [], tuning=tuning, training={"dropout": 0.0})
    assert step_of(mixed, 0).loss != pytest.approx(step_of(plain, 0).loss, rel=1e-3)
    assert float(gradient_of(mixed).norm()) > 0


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("sampler", ["shuffle", "class_balanced"])
def test_a_run_stopped_amid_an_epoch_ends_as_one_that_never_was(tmp_path: Path, tiny_base: Path, sampler: str) -> None:
    # 6 steps an epoch.
    training = {"augmentation": EVERY_WAY, "sampler": sampler, "epochs": 2}
    digests = []
    for name, stops in (("whole", ()), ("stopped", (1, 4, 9))):
        run = lay_out(tmp_path / name, training=training)
        for step in stops:
            with pytest.raises(StoppedError):
                fit_run(run, prepare_run(run, tiny_base), stop_after(run, step))
        prepared = prepare_run(run, tiny_base)
        fit_run(run, prepared)
        digests.append((weights_sha256(prepared.network), series(run, "train/loss")))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("way", EVERY_WAY, ids=["eda", "mask", "mixup"])
def test_each_way_changes_training_and_what_is_measured_stays_as_it_is(
    tmp_path: Path, tiny_base: Path, way: Any
) -> None:
    steady = {"optimizer": {"type": "sgd", "learning_rate": 1e-12}, "epochs": 2, "dropout": 0.0}
    losses, measured = [], []
    for name, augmentation in (("plain", []), ("augmented", [way])):
        run = lay_out(tmp_path / name, training={**steady, "augmentation": augmentation})
        fitted = fit_run(run, prepare_run(run, tiny_base))
        losses.append(series(run, "train/loss"))
        measured.append((series(run, "validation/loss"), fitted.metrics))
    assert losses[0] != losses[1]
    assert measured[0] == measured[1]


def test_every_epoch_changes_a_row_anew(tmp_path: Path, tiny_base: Path) -> None:
    steady = {"optimizer": {"type": "sgd", "learning_rate": 1e-12}, "dropout": 0.0, "batch_size": 48, "epochs": 4}
    run = lay_out(tmp_path, training={**steady, "augmentation": ["mask"]})
    fit_run(run, prepare_run(run, tiny_base))
    assert len({round(loss, 5) for loss in series(run, "train/loss").values()}) == 4


def test_a_dry_run_measures_the_steps_the_job_begins_with(tmp_path: Path, tiny_base: Path) -> None:
    steady = {"optimizer": {"type": "sgd", "learning_rate": 1e-12}, "dropout": 0.0, "max_steps": 4}
    run = lay_out(tmp_path, training={**steady, "augmentation": EVERY_WAY})
    report = dry_run(prepare_run(run, tiny_base), MACHINE, told=lambda _done, _steps: None, stop=lambda: False)
    fit_run(run, prepare_run(run, tiny_base))
    losses = list(series(run, "train/loss").values())
    expected = {"mean": np.mean(losses), "min": min(losses), "max": max(losses)}
    assert report.terms[0].value.model_dump() == pytest.approx(expected, rel=1e-6)


def test_the_mask_is_among_the_words_that_train(tmp_path: Path, tiny_base: Path) -> None:
    prepared = prepared_for(tmp_path, tiny_base, ["mask"])
    mask = prepared.corpus.base_facts.mask_id
    assert mask == 4
    assert mask not in prepared.corpus.used_ids
    words = prepared.network.model.get_input_embeddings()
    before = words(torch.tensor([mask])).detach().clone()
    fit_run(lay_out(tmp_path / "fit"), prepared)
    after = prepared.network.model.get_input_embeddings()(torch.tensor([mask]))
    assert (after != before).all()


def test_a_way_that_finds_nothing_to_change_leaves_a_run_as_it_is(tmp_path: Path, tiny_base: Path) -> None:
    digests = set()
    rarely = {"type": "mask", "probability": 1e-12}
    for name, ways in (("plain", []), ("augmented", [rarely])):
        # Adam without decay: whatever is done to the mask's own embedding, it stays as it is.
        optimizer = {"type": "adamw", "learning_rate": 2e-3, "weight_decay": 0}
        run = lay_out(tmp_path / name, training={"augmentation": ways, "optimizer": optimizer})
        prepared = prepare_run(run, tiny_base)
        fit_run(run, prepared)
        digests.add(weights_sha256(prepared.network))
    assert len(digests) == 1
