"""From a run directory to everything the loop needs: rows, split, tokens or features, network, loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml.artifact.description import ONNX, Description
from ml.artifact.manifest import file_sha256
from ml.base_folder import check_base_folder
from ml.bases import base_sha256, find_base, read_base_facts
from ml.data.augmentation import Augmenter
from ml.data.batches import Rows, cut_step
from ml.data.cache import ArrayCache, Arrays
from ml.data.rows import read_columns, read_texts
from ml.data.samplers import sample_epoch
from ml.data.splits import Part
from ml.data.tokens import FeatureTable, HiddenTable, TokenTable, as_array, token_arrays, word_arrays
from ml.inference.backends import OnnxBackend
from ml.inference.classifier import OnnxClassifier
from ml.losses.base import LossContext, Targets
from ml.losses.objective import Objective
from ml.memory import tokens_that_fit
from ml.models.classifier import (
    FeatureHead,
    MeanPooledEncoder,
    NativeClassifier,
    load_encoder,
    load_native,
    read_config,
)
from ml.models.frozen_layers import FrozenLayers
from ml.models.heads import SharedHead
from ml.models.tuning import tune
from ml.resolve import Resolved, main_loss, needed_headers, resolve
from ml.specs.errors import quoted, refuse
from ml.specs.job import JobSpec, Setup
from ml.specs.losses.auxiliary import SOFTMAX_READINGS
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import Composition, teachers_of
from ml.tasks.base import Task
from ml.tasks.build import build_task
from ml.training.continued import Start
from ml.training.machine import Machine
from ml.training.optimizers import only_scales_untouched
from ml.training.run import Placement, RunDirectory
from ml.training.step import Batch, Examples

# Raised when the same tokenizer would come to other tokens, or the same encoder to other features.
TOKENS_VERSION = 1
FEATURES_VERSION = 1
HIDDEN_VERSION = 1
# So many rows are encoded, those of a length together, before the next: their features are in memory.
ROWS_ENCODED_AT_ONCE = 1 << 15
# The same of frozen layers, in tokens: each has a vector.
TOKENS_ENCODED_AT_ONCE = 1 << 16

Told = Callable[[int, int], None]


class Corpus:
    """A dataset and a base model, read once for every run over them: rows, texts, tokens, features."""

    def __init__(self, run: RunDirectory, placement: Placement, setup: Setup) -> None:
        self.placement = placement
        self.facts = run.read_facts()
        self.base = find_base(setup.model, placement.base_models)
        self.start = None if placement.start is None else Start.read(placement.start)
        if self.start is None:  # else it may be an artifact of ours, which verifies
            check_base_folder(self.base)
        self.base_facts = read_base_facts(setup.model, self.base)
        if self.start and self.start.description.head != "native" and not self.start.description.is_adapted:
            _require_same_base(setup.model, self.base_sha256, self.start.description)
        self.cells = read_columns(run.rows, needed_headers(setup, self.facts))
        self.rows = run.rows
        self._max_length = setup.training.max_length
        self._cache = ArrayCache(
            placement.cache.folder if placement.cache else None,
            placement.cache.max_bytes if placement.cache else 0,
            run.path,
            lambda why: run.tell("message", why, level="warning"),
        )
        self._tell = run.tell
        self._hidden: dict[int, HiddenTable | None] = {}

    @cached_property
    def base_sha256(self) -> str:
        """Of the base model."""
        return base_sha256(self.base)

    @cached_property
    def tokens(self) -> TokenTable:
        """Of every text."""
        config = read_config(self.base)
        has_types = getattr(config, "type_vocab_size", 0) > 1

        def make() -> Iterator[Arrays]:
            texts = read_texts(self.rows, self.facts.columns)
            return token_arrays(self.base, texts, self._max_length, has_types=has_types)

        arrays = self._cache.get("tokens", self._tokens_key, make)
        return TokenTable(arrays, pad_id=int(config.pad_token_id or 0))

    @cached_property
    def marked_tokens(self) -> TokenTable:
        """The same, with what tells their words apart."""

        def make() -> Iterator[Arrays]:
            return word_arrays(self.base, read_texts(self.rows, self.facts.columns), self._max_length)

        return self.tokens.beside(self._cache.get("words", self._tokens_key, make))

    @cached_property
    def _tokens_key(self) -> dict[str, Any]:
        """All that the tokens depend on."""
        return {
            "rows_sha256": file_sha256(self.rows),  # not as somebody says it is: it costs a second a gigabyte
            "text": self.facts.columns.text,
            "text_pair": self.facts.columns.text_pair,
            "base_sha256": self.base_sha256,
            "max_length": self._max_length,
            "tokenizers": version("tokenizers"),
            "version": TOKENS_VERSION,
        }

    def features(self, encoder: Callable[[], MeanPooledEncoder], machine: Machine, told: Told) -> FeatureTable:
        """Of every text, by the frozen encoder; it is asked for only where they must be computed."""
        arrays = self._cache.get(
            "features", self._features_key(machine), lambda: encode_features(encoder(), self.tokens, machine, told)
        )
        return FeatureTable(arrays["features"])

    def known_features(self, machine: Machine) -> FeatureTable | None:
        """The same, if an earlier run has left them."""
        arrays = self._cache.find("features", self._features_key(machine))
        return None if arrays is None else FeatureTable(arrays["features"])

    def hidden(self, frozen: FrozenLayers, machine: Machine, told: Told) -> HiddenTable | None:
        """Of every text, out of a network's frozen layers; None where they cannot be kept. A process asks once."""
        if frozen.count not in self._hidden:
            self._hidden[frozen.count] = self._find_hidden(frozen, machine, told)
        return self._hidden[frozen.count]

    def _find_hidden(self, frozen: FrozenLayers, machine: Machine, told: Told) -> HiddenTable | None:
        size = int(self.tokens.lengths.sum()) * encode_hidden_rows(frozen, self.tokens, np.arange(1), machine)[0].nbytes
        limit = self.placement.memory_bytes
        # What is mapped counts as address space, and the passes need most of that.
        if not self._cache.may_hold(size) or (limit and size > limit // 4):
            if self.placement.cache:
                self._tell("message", f"the frozen layers run in every epoch: what they make takes {size} bytes")
            return None
        key = {**self._features_key(machine), "layers": frozen.count, "version": HIDDEN_VERSION}
        try:
            arrays = self._cache.get("hidden", key, lambda: encode_hidden(frozen, self.tokens, machine, told))
        except OSError as error:  # nowhere is room
            self._tell("message", f"the frozen layers run in every epoch: {error}", level="warning")
            return None
        return HiddenTable(self.tokens, arrays["hidden"])

    def _features_key(self, machine: Machine) -> dict[str, Any]:
        # Threads and the cut into passes move the last bits of a float32, as in any run; they are left out.
        return {
            "tokens": self._tokens_key,
            "device": machine.device,
            "precision": machine.precision,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "version": FEATURES_VERSION,
        }

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
        return Targets(labels, groups, _ask_teacher(self, resolved))


@dataclass
class Prepared:
    """What a run trains, and on what."""

    corpus: Corpus
    resolved: Resolved
    task: Task
    base: Path
    base_sha256: str
    tokens: TokenTable
    targets: Targets  # of every row
    encoder: MeanPooledEncoder | None  # of a frozen run that has its texts to encode
    network: NativeClassifier | FeatureHead
    objective: Objective
    augmenter: Augmenter | None = None
    features: FeatureTable | None = None  # of a frozen run whose texts are encoded
    begun: str | None = None  # what came along of a model that is trained further

    @property
    def spec(self) -> JobSpec:
        """The resolved spec."""
        return self.resolved.spec

    @property
    def frozen_layers(self) -> FrozenLayers | None:
        """The network's lowest layers, where they make the same of a row in every epoch."""
        spec = self.spec
        if not isinstance(self.network, NativeClassifier) or spec.tuning.type not in {"full", "top_layers"}:
            return None
        # Other texts, other word embeddings; and what is compiled is the whole network.
        if self.augmenter is not None or "adversarial" in self.objective.needs or spec.training.compile:
            return None
        return self.network.frozen_layers

    def rows_of(self, part: Part) -> Rows:
        """The row numbers of one part."""
        return np.flatnonzero(self.resolved.parts == part)

    def tokens_that_fit(self, spare_bytes: int) -> int:
        """Padded tokens of a forward pass for which memory is left."""
        return tokens_that_fit(self.resolved, self.corpus.base_facts, spare_bytes)

    def steps_of(self, epoch: int, lengths: NDArray[np.int64]) -> list[Rows]:
        """The rows of each optimizer step of an epoch. lengths: of every row, as the network reads it."""
        training = self.spec.training
        return sample_epoch(
            training.sampler,
            self.rows_of(Part.TRAIN),
            self.targets.labels.numpy(),
            lengths,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
        )

    def batch_of(self, rows: Rows, step: int, examples: Examples) -> Batch:
        """The rows of an optimizer step, the first of all being step 0, as the network is to read them."""
        augmented = None if self.augmenter is None else self.augmenter.augment(rows, step)
        return Batch(examples, self.targets, rows, augmented)


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
    if isinstance(network.head, SharedHead):
        network.head.start_at(log_odds_of_levels(list(resolved.train_counts.values())))
    begun = None if corpus.start is None else corpus.start.begin(network, resolved.state)
    if isinstance(network, NativeClassifier):
        tune(network, spec.tuning)
        if only_scales_untouched(spec.training.optimizer):
            network.compact_words(torch.from_numpy(_used_ids(corpus, spec)))
    return Prepared(
        corpus=corpus,
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
        augmenter=_augmenter_of(corpus, spec),
        features=features,
        begun=begun,
    )


def _used_ids(corpus: Corpus, spec: JobSpec) -> NDArray[np.int64]:
    """The ids that the network will read."""
    mask = [corpus.base_facts.mask_id for one in spec.training.augmentation if one.type == "mask"]
    return np.union1d(corpus.used_ids, np.array(mask, np.int64))


def _augmenter_of(corpus: Corpus, spec: JobSpec) -> Augmenter | None:
    asked = spec.training.augmentation
    if not asked:
        return None
    return Augmenter(
        asked,
        corpus.tokens if all(one.type == "mixup" for one in asked) else corpus.marked_tokens,
        mask_id=corpus.base_facts.mask_id,
        max_length=spec.training.max_length,
        seed=spec.training.seed,
    )


def _require_same_base(model: str, found: str, description: Description) -> None:
    """The head of a frozen model is for the vectors of one encoder."""
    if found != description.base_sha256:
        raise refuse(
            "/model",
            f"'{model}' is a head over the base model '{description.base_model}', whose files have changed since. Put "
            "back what was there, or start from a base model.",
            "base_model_changed",
        )


def log_odds_of_levels(counts: Sequence[int]) -> Tensor:
    """Of each level but the highest, the logit of being above it (K − 1,), half a row added to each side."""
    rows = np.array(counts, np.float64)
    above = rows[::-1].cumsum()[::-1][1:]
    return torch.from_numpy(np.log((above + 0.5) / (rows.sum() - above + 0.5))).float()


def encode_features(encoder: MeanPooledEncoder, tokens: TokenTable, machine: Machine, told: Told) -> Iterator[Arrays]:
    """Run a frozen encoder once over every row: features (N, D) float32, piece by piece.

    `told(done, rows)` is called after each pass.
    """
    rows: Rows = np.arange(len(tokens.lengths))
    for start in range(0, len(rows), ROWS_ENCODED_AT_ONCE):
        some = rows[start : start + ROWS_ENCODED_AT_ONCE]

        def told_here(done: int, before: int = start) -> None:
            told(before + done, len(rows))

        yield {"features": encode_rows(encoder, tokens, some, machine, told_here)}


@torch.no_grad()
def encode_rows(
    encoder: MeanPooledEncoder, tokens: TokenTable, rows: Rows, machine: Machine, told: Callable[[int], None]
) -> NDArray[np.float32]:
    """A frozen encoder's vectors of some rows, in the order given: (N, D). `told(done)` is called after each pass."""
    encoder.to(machine.device)
    features: NDArray[np.float32] | None = None
    lengths, done = tokens.lengths[rows], 0
    for places in cut_step(np.arange(len(rows)), lengths, max_tokens=machine.micro_batch_tokens, max_rows=None):
        inputs = machine.put_each(tokens.inputs_of(rows[places]))
        with machine.autocast():
            vectors = encoder(**inputs).float().cpu().numpy()  # (B, D)
        if features is None:
            features = np.empty((len(rows), vectors.shape[1]), np.float32)
        features[places] = vectors
        done += len(places)
        told(done)
    encoder.cpu()
    assert features is not None, "there are rows"
    return features


def encode_hidden(frozen: FrozenLayers, tokens: TokenTable, machine: Machine, told: Told) -> Iterator[Arrays]:
    """Run frozen layers once over every row: hidden (T, D), flat, piece by piece.

    `told(done, rows)` is called after each piece.
    """
    ends = np.cumsum(tokens.lengths)
    cuts = np.unique(np.searchsorted(ends, np.arange(TOKENS_ENCODED_AT_ONCE, ends[-1], TOKENS_ENCODED_AT_ONCE)))
    for rows in np.split(np.arange(len(ends)), cuts[cuts > 0]):
        yield {"hidden": encode_hidden_rows(frozen, tokens, rows, machine)}
        told(int(rows[-1]) + 1, len(ends))


def encode_hidden_rows(frozen: FrozenLayers, tokens: TokenTable, rows: Rows, machine: Machine) -> NDArray[Any]:
    """What frozen layers make of the tokens of rows that follow each other: (T, D), flat, as `as_array` makes it."""
    _, flat = tokens.places(rows)
    hidden: NDArray[Any] | None = None
    for some in cut_step(rows, tokens.lengths, max_tokens=machine.micro_batch_tokens, max_rows=None):
        inputs = machine.put_each(tokens.inputs_of(some))
        with machine.autocast():
            vectors = as_array(frozen.encode(**inputs).cpu())  # (B, L, D)
        is_real, places = tokens.places(some)
        if hidden is None:
            hidden = np.empty((len(flat), vectors.shape[2]), vectors.dtype)
        hidden[places - flat[0]] = vectors[is_real]
    assert hidden is not None, "there are rows"
    return hidden


def logits_of(network: nn.Module, examples: Examples, rows: Rows, machine: Machine) -> NDArray[np.float32]:
    """Answer rows in eval mode, float32, in the order given: (N, C)."""
    was_training = network.training
    network.eval()
    answers: dict[int, NDArray[np.float32]] = {}
    with torch.no_grad():
        for some in cut_step(rows, examples.widths, max_tokens=machine.micro_batch_tokens, max_rows=None):
            inputs = machine.put_each(examples.inputs_of(some))
            with machine.autocast():
                logits = network(**inputs).in_full_precision().logits.cpu().numpy()
            answers.update(zip(some.tolist(), logits, strict=True))
    network.train(was_training)
    return np.stack([answers[row] for row in rows.tolist()])


def _ask_teacher(corpus: Corpus, resolved: Resolved) -> Tensor | None:
    """The teacher's logits for every row that trains (N, H), the others 0; None where no term has a teacher."""
    asked = teachers_of(_loss_of(resolved))
    if not asked:
        return None
    ((pointer, teacher),) = asked.items()  # two are refused
    pointer = f"/loss{pointer}"
    if teacher not in corpus.placement.teachers:
        raise refuse(pointer, f"the teacher '{teacher}' is not at hand: name its folders in run.json.", "no_teacher")
    artifact, runtime = corpus.placement.teachers[teacher]
    classifier = OnnxClassifier(artifact, runtime, OnnxBackend(runtime / ONNX, torch.get_num_threads()))
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
    texts = [text for some in read_texts(corpus.rows, corpus.facts.columns) for text in some]
    logits = classifier.logits(classifier.tokenize([texts[row] for row in rows]))
    every = torch.zeros(len(texts), logits.shape[1])
    every[torch.from_numpy(rows)] = torch.from_numpy(logits)
    return every


def _loss_of(resolved: Resolved) -> LossSpec | Composition:
    assert resolved.spec.loss is not None, "a resolved spec has a loss"
    return resolved.spec.loss
