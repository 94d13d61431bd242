"""From a run directory to everything the loop needs: rows, split, tokens or features, network, loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml.artifact.description import ONNX
from ml.artifact.tokenizer import Text
from ml.bases import base_sha256, find_base, read_base_facts
from ml.data.batches import Rows, cut_step
from ml.data.rows import read_columns
from ml.data.splits import Part
from ml.data.tokens import FeatureTable, TokenTable
from ml.inference.classifier import OnnxClassifier, open_session
from ml.losses.base import LossContext, Targets
from ml.losses.objective import Objective
from ml.models.classifier import (
    FeatureHead,
    MeanPooledEncoder,
    NativeClassifier,
    load_encoder,
    load_native,
    read_config,
)
from ml.models.tuning import tune
from ml.resolve import Resolved, main_loss, needed_headers, resolve
from ml.specs.errors import quoted, refuse
from ml.specs.job import JobSpec, Setup
from ml.specs.losses.auxiliary import SOFTMAX_READINGS
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import Composition, teachers_of
from ml.tasks.base import Task
from ml.tasks.build import build_task
from ml.training.machine import Machine
from ml.training.optimizers import decay_of_untouched
from ml.training.run import Placement, RunDirectory
from ml.training.step import Examples


class Corpus:
    """A dataset and a base model, read once for every run over them: rows, texts, tokens."""

    def __init__(self, run: RunDirectory, placement: Placement, setup: Setup) -> None:
        self.placement = placement
        self.facts = run.read_facts()
        self.base = find_base(setup.model, placement.base_models)
        self.base_facts = read_base_facts(setup.model, self.base)
        self.cells = read_columns(run.rows, needed_headers(setup, self.facts))
        self._rows = run.rows
        self._max_length = setup.training.max_length

    @cached_property
    def base_sha256(self) -> str:
        """Of the base model."""
        return base_sha256(self.base)

    @cached_property
    def texts(self) -> list[Text]:
        """Of every row, pairs as pairs."""
        columns = self.facts.columns
        cells = read_columns(self._rows, [columns.text] + ([columns.text_pair] if columns.text_pair else []))
        texts = [cell or "" for cell in cells[columns.text]]
        if columns.text_pair is None:
            return list(texts)
        return list(zip(texts, [cell or "" for cell in cells[columns.text_pair]], strict=True))

    @cached_property
    def tokens(self) -> TokenTable:
        """Of every text."""
        config = read_config(self.base)
        return TokenTable(
            self.base,
            self.texts,
            self._max_length,
            pad_id=int(config.pad_token_id or 0),
            has_types=getattr(config, "type_vocab_size", 0) > 1,
        )

    @cached_property
    def used_ids(self) -> NDArray[np.int64]:
        """The ids of all texts."""
        return self.tokens.used_ids()

    def targets(self, resolved: Resolved, task: Task) -> Targets:
        """What a loss compares with, of every row."""
        columns = self.facts.columns
        assert columns.label is not None, "resolve refuses a dataset without labels"
        labels = torch.from_numpy(task.encode([cell or "" for cell in self.cells[columns.label]]))
        groups = None
        if resolved.groups and columns.group:
            index = {group: i for i, group in enumerate(resolved.groups)}
            groups = torch.tensor([index[cell or ""] for cell in self.cells[columns.group]])
        return Targets(labels, groups, _ask_teacher(self.placement, resolved, self.texts))


@dataclass
class Prepared:
    """What a run trains, and on what."""

    resolved: Resolved
    task: Task
    base: Path
    base_sha256: str
    tokens: TokenTable
    targets: Targets  # of every row
    encoder: MeanPooledEncoder | None  # of a frozen run that has its texts to encode
    network: NativeClassifier | FeatureHead
    objective: Objective
    features: FeatureTable | None = None  # of a frozen run whose texts are encoded

    @property
    def spec(self) -> JobSpec:
        """The resolved spec."""
        return self.resolved.spec

    def rows_of(self, part: Part) -> Rows:
        """The row numbers of one part."""
        return np.flatnonzero(self.resolved.parts == part)


def prepare(run: RunDirectory, placement: Placement) -> Prepared:
    """Read, check and build. Raises SpecError for a spec or data that cannot be trained on."""
    spec = run.read_spec(JobSpec)
    corpus = Corpus(run, placement, spec)
    return assemble(corpus, resolve(spec, corpus.facts, corpus.base_facts, corpus.cells))


def assemble(corpus: Corpus, resolved: Resolved, features: FeatureTable | None = None) -> Prepared:
    """Build what a resolved spec asks for. The new head is drawn from the spec's seed, and then dropout.

    features: of a frozen run whose texts are encoded already; then there is no encoder, and nothing to export.
    """
    spec = resolved.spec
    torch.manual_seed(spec.training.seed)
    encoder = None
    network: NativeClassifier | FeatureHead
    loss = _loss_of(resolved)
    task = build_task(resolved.state)
    main = main_loss(loss)
    scale = float(getattr(main, "scale", 1.0))  # of a cosine head
    if spec.tuning.type == "frozen":
        encoder = load_encoder(corpus.base) if features is None else None
        network = FeatureHead(corpus.base_facts.hidden_size, task.width, main.head, scale, spec.training.dropout or 0.0)
    else:
        network = load_native(
            corpus.base,
            width=task.width,
            labels=tuple(resolved.state.labels),
            head=main.head,
            scale=scale,
            dropout=spec.training.dropout,
        )
        tune(network, spec.tuning)
        if decay_of_untouched(spec.training, 0, 1) is not None:
            network.compact_words(torch.from_numpy(corpus.used_ids))
    return Prepared(
        resolved=resolved,
        task=task,
        base=corpus.base,
        base_sha256=corpus.base_sha256,
        tokens=corpus.tokens,
        targets=corpus.targets(resolved, task),
        encoder=encoder,
        network=network,
        objective=Objective(
            loss,
            LossContext(
                labels=resolved.state.labels,
                train_counts=resolved.train_counts,
                groups=len(resolved.groups),
                reading=resolved.state.reading,
                train_rows=resolved.train_rows,
            ),
        ),
        features=features,
    )


def encode_features(
    encoder: MeanPooledEncoder, tokens: TokenTable, machine: Machine, told: Callable[[int, int], None]
) -> FeatureTable:
    """Run a frozen encoder once over every row. `told(done, rows)` is called after each pass."""
    features: Tensor | None = None
    rows: Rows = np.arange(len(tokens.lengths))
    done = 0
    encoder.to(machine.device)
    with torch.no_grad():
        for some in cut_step(rows, tokens.lengths, max_tokens=machine.micro_batch_tokens, max_rows=None):
            inputs = {name: tensor.to(machine.device) for name, tensor in tokens.inputs_of(some).items()}
            with machine.autocast():
                vectors = encoder(**inputs).float().cpu()  # (B, D)
            if features is None:
                features = torch.empty(len(rows), vectors.shape[1])
            features[torch.from_numpy(some)] = vectors
            done += len(some)
            told(done, len(rows))
    encoder.cpu()
    assert features is not None, "a resolved run has rows"
    return FeatureTable(features)


def logits_of(network: nn.Module, examples: Examples, rows: Rows, machine: Machine) -> NDArray[np.float32]:
    """Answer rows in eval mode, float32, in the order given: (N, C)."""
    was_training = network.training
    network.eval()
    answers: dict[int, NDArray[np.float32]] = {}
    with torch.no_grad():
        for some in cut_step(rows, examples.lengths, max_tokens=machine.micro_batch_tokens, max_rows=None):
            inputs = {name: tensor.to(machine.device) for name, tensor in examples.inputs_of(some).items()}
            with machine.autocast():
                logits = network(**inputs).in_full_precision().logits.cpu().numpy()
            answers.update(zip(some.tolist(), logits, strict=True))
    network.train(was_training)
    return np.stack([answers[row] for row in rows.tolist()])


def _ask_teacher(placement: Placement, resolved: Resolved, texts: list[Text]) -> Tensor | None:
    """The teacher's logits for every row that trains (N, H), the others 0; None where no term has a teacher."""
    asked = teachers_of(_loss_of(resolved))
    if not asked:
        return None
    ((pointer, teacher),) = asked.items()  # two are refused
    pointer = f"/loss{pointer}"
    if teacher not in placement.teachers:
        raise refuse(pointer, f"the teacher '{teacher}' is not at hand: name its folders in run.json.", "no_teacher")
    artifact, runtime = placement.teachers[teacher]
    classifier = OnnxClassifier(artifact, runtime, open_session(runtime / ONNX, torch.get_num_threads()))
    own, its = resolved.state, classifier.description.task
    is_read_alike = own.reading == its.reading or {own.reading, its.reading} <= SOFTMAX_READINGS
    if own.labels != its.labels or not is_read_alike:
        raise refuse(
            pointer,
            f"the teacher '{teacher}' has the labels {quoted(its.labels)}, read as '{its.reading}', and this model "
            f"{quoted(own.labels)}, read as '{own.reading}': both must be the same, in the same order.",
            "teacher_does_not_fit",
        )
    rows = np.flatnonzero(resolved.parts == Part.TRAIN)
    logits = classifier.logits(classifier.tokenize([texts[row] for row in rows]))
    every = torch.zeros(len(texts), logits.shape[1])
    every[torch.from_numpy(rows)] = torch.from_numpy(logits)
    return every


def _loss_of(resolved: Resolved) -> LossSpec | Composition:
    assert resolved.spec.loss is not None, "a resolved spec has a loss"
    return resolved.spec.loss
