"""From a run directory to everything the loop needs: rows, split, tokens or features, network, loss."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from ml.artifact.tokenizer import Text
from ml.bases import base_sha256, find_base, read_base_facts
from ml.data.batches import Rows, cut_step
from ml.data.rows import read_columns
from ml.data.splits import Part
from ml.data.tokens import FeatureTable, TokenTable
from ml.losses.base import Loss
from ml.losses.registry import build_loss
from ml.models.classifier import LinearHead, MeanPooledEncoder, NativeClassifier, load_encoder, load_native
from ml.resolve import Resolved, needed_headers, resolve
from ml.specs.errors import explain_validation
from ml.specs.facts import Columns
from ml.specs.job import JobSpec
from ml.tasks.text_classification import TextClassificationTask
from ml.training.machine import Machine
from ml.training.run import Placement, RunDirectory
from ml.training.step import Examples


@dataclass
class Prepared:
    """What a run trains, and on what."""

    resolved: Resolved
    task: TextClassificationTask
    base: Path
    base_sha256: str
    tokens: TokenTable
    targets: Tensor  # (N,) class ids of every row
    encoder: MeanPooledEncoder | None  # of a frozen run
    network: NativeClassifier | LinearHead
    loss: Loss

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
    network: NativeClassifier | LinearHead
    if spec.tuning.type == "frozen":
        encoder = load_encoder(base)
        network = LinearHead(base_facts.hidden_size, len(resolved.labels), spec.training.dropout or 0.0)
        config: Any = encoder.model.config
    else:
        network = load_native(base, resolved.labels, spec.training.dropout)
        config = network.model.config
    tokens = TokenTable(
        base,
        _read_texts(run.rows, facts.columns),
        spec.training.max_length,
        pad_id=int(config.pad_token_id or 0),
        has_types=getattr(config, "type_vocab_size", 0) > 1,
    )
    task = TextClassificationTask(resolved.labels)
    assert facts.columns.label is not None and spec.loss is not None, "a resolved spec has both"
    cells = read_columns(run.rows, [facts.columns.label])[facts.columns.label]
    return Prepared(
        resolved=resolved,
        task=task,
        base=base,
        base_sha256=base_sha256(base),
        tokens=tokens,
        targets=torch.from_numpy(task.encode([cell or "" for cell in cells])),
        encoder=encoder,
        network=network,
        loss=build_loss(spec.loss, resolved.labels, resolved.train_counts),
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


def _read_texts(file: Path, columns: Columns) -> list[Text]:
    headers = [columns.text] + ([columns.text_pair] if columns.text_pair else [])
    cells = read_columns(file, headers)
    texts = [cell or "" for cell in cells[columns.text]]
    if columns.text_pair is None:
        return list(texts)
    return list(zip(texts, [cell or "" for cell in cells[columns.text_pair]], strict=True))
