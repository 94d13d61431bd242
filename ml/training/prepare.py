"""From a run directory to everything the loop needs: rows, split, tokens or features, network, loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
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
from ml.models.classifier import FeatureHead, MeanPooledEncoder, NativeClassifier, load_encoder, load_native
from ml.resolve import Resolved, main_loss, needed_headers, resolve
from ml.specs.errors import explain_validation, quoted, refuse
from ml.specs.facts import Columns
from ml.specs.job import JobSpec
from ml.specs.losses.auxiliary import SOFTMAX_READINGS, KdSpec
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import Composition, terms_of
from ml.tasks.base import Task
from ml.tasks.build import build_task
from ml.training.machine import Machine
from ml.training.run import Placement, RunDirectory
from ml.training.step import Examples


@dataclass
class Prepared:
    """What a run trains, and on what."""

    resolved: Resolved
    task: Task
    base: Path
    base_sha256: str
    tokens: TokenTable
    targets: Targets  # of every row
    encoder: MeanPooledEncoder | None  # of a frozen run
    network: NativeClassifier | FeatureHead
    objective: Objective

    @property
    def spec(self) -> JobSpec:
        """The resolved spec."""
        return self.resolved.spec

    def rows_of(self, part: Part) -> Rows:
        """The row numbers of one part."""
        return np.flatnonzero(self.resolved.parts == part)


def prepare(run: RunDirectory, placement: Placement) -> Prepared:
    """Read, check and build. Raises SpecError for a spec or data that cannot be trained on."""
    given = run.read_spec()
    try:
        spec = JobSpec.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error, given) from error
    facts = run.read_facts()
    base = find_base(spec.model, placement.base_models)
    base_facts = read_base_facts(spec.model, base)
    resolved = resolve(spec, facts, base_facts, read_columns(run.rows, needed_headers(spec, facts)))
    spec = resolved.spec

    torch.manual_seed(spec.training.seed)  # the new head is drawn from it, then dropout
    encoder = None
    network: NativeClassifier | FeatureHead
    assert spec.loss is not None, "a resolved spec has a loss"
    task = build_task(resolved.state)
    main = main_loss(spec.loss)
    scale = float(getattr(main, "scale", 1.0))  # of a cosine head
    if spec.tuning.type == "frozen":
        encoder = load_encoder(base)
        network = FeatureHead(base_facts.hidden_size, task.width, main.head, scale, spec.training.dropout or 0.0)
        config: Any = encoder.model.config
    else:
        network = load_native(
            base,
            width=task.width,
            labels=tuple(resolved.state.labels),
            head=main.head,
            scale=scale,
            dropout=spec.training.dropout,
        )
        config = network.model.config
    texts = _read_texts(run.rows, facts.columns)
    tokens = TokenTable(
        base,
        texts,
        spec.training.max_length,
        pad_id=int(config.pad_token_id or 0),
        has_types=getattr(config, "type_vocab_size", 0) > 1,
    )
    return Prepared(
        resolved=resolved,
        task=task,
        base=base,
        base_sha256=base_sha256(base),
        tokens=tokens,
        targets=replace(
            _read_targets(run, facts.columns, task, resolved.groups),
            teacher=_ask_teacher(placement, resolved, texts),
        ),
        encoder=encoder,
        network=network,
        objective=Objective(
            spec.loss,
            LossContext(
                labels=resolved.state.labels,
                train_counts=resolved.train_counts,
                groups=len(resolved.groups),
                reading=resolved.state.reading,
                train_rows=resolved.train_rows,
            ),
        ),
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
    asked = [(i, term.loss) for i, term in enumerate(terms_of(_loss_of(resolved))) if isinstance(term.loss, KdSpec)]
    if not asked:
        return None
    ((place, kd),) = asked  # two are refused
    teacher = kd.teacher
    pointer = f"/loss/terms/{place}/loss/teacher"
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


def _read_targets(run: RunDirectory, columns: Columns, task: Task, groups: Sequence[str]) -> Targets:
    assert columns.label is not None, "resolve refuses a dataset without labels"
    headers = [columns.label] + ([columns.group] if columns.group else [])
    cells = read_columns(run.rows, headers)
    labels = torch.from_numpy(task.encode([cell or "" for cell in cells[columns.label]]))
    ids = None
    if groups and columns.group:
        index = {group: i for i, group in enumerate(groups)}
        ids = torch.tensor([index[cell or ""] for cell in cells[columns.group]])
    return Targets(labels, ids)


def _read_texts(file: Path, columns: Columns) -> list[Text]:
    headers = [columns.text] + ([columns.text_pair] if columns.text_pair else [])
    cells = read_columns(file, headers)
    texts = [cell or "" for cell in cells[columns.text]]
    if columns.text_pair is None:
        return list(texts)
    return list(zip(texts, [cell or "" for cell in cells[columns.text_pair]], strict=True))
