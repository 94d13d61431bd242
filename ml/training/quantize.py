"""Writes the int8 file beside the float32 one, if its answers are good enough, and says why or why not.

It knows a prepared run's texts and one task; how a file becomes int8 is `ml.artifact.int8`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ml.artifact.description import INT8, ONNX, Serving
from ml.artifact.int8 import Product, Scales, Seen, choose_scales, expose_inputs, read_products, write_int8
from ml.data.batches import Rows, cut_step
from ml.data.splits import Part
from ml.data.tokens import TokenTable
from ml.inference.adapters import Adapter
from ml.inference.backends import no_adapter, open_session
from ml.inference.classifier import MAX_BATCH_TOKENS, OnnxClassifier
from ml.tasks.agreement import HeldOut, compare
from ml.tasks.base import Task
from ml.training.prepare import Prepared

# So many texts decide; a dataset that has fewer is served in float32.
TEXTS = 1000
# Where int8 changes too much, this share of the layers goes back to float32, the most sensitive first. Past half of
# them there is little left to gain.
_KEPT_SHARES = (0.0, 1 / 6, 1 / 3, 1 / 2)
# So many texts tell what a layer reads, and so many of their tokens how it bears int8.
_SEEN_TEXTS, _SEEN_TOKENS = 256, 512
_SEEN_AT_ONCE = 1024  # tokens; a pass keeps what every layer reads of them
# Of a shared network this share of the layers stays in float32 for all models: in int8 throughout few of them pass.
_KEPT_OF_SHARED = 1 / 6

Read = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def write_served_format(
    folder: Path, prepared: Prepared, task: Task, probe: TokenTable, texts: int
) -> tuple[Serving, list[list[float]] | None]:
    """Write `folder`'s int8 file, and keep it if it may be served in the place of the float32 one that is there.

    texts: how many decide. Returns also what the int8 file answers to the probe texts (N, H), where it is kept.
    """
    if (refusal := _too_few(prepared, texts)) is not None:
        return refusal, None
    trial = _Trial(folder, prepared, task, texts)
    products = read_products(folder / ONNX)
    # Of other texts than those that decide, where the dataset has so many.
    seen = _look(folder / ONNX, prepared.tokens, _drawn_rows(prepared)[-_SEEN_TEXTS:])
    scales = {x: choose_scales(those, seen[x]) for x, those in _by_input(products).items()}
    order = _most_sensitive_first(products, seen, scales)
    for share in _KEPT_SHARES:
        kept = order[: round(share * len(products))]
        write_int8(folder / ONNX, folder / INT8, scales=scales, kept=kept)
        serving = trial.judge(kept)
        if serving.format == "onnx-int8":
            return serving, trial.answer_in_int8(probe)
    (folder / INT8).unlink()
    serving.reason += f"; that is with {len(kept)} of {len(products)} layers left in float32"
    return serving, None


def write_shared_int8(folder: Path, texts: TokenTable) -> None:
    """Write the int8 file of a shared network, the same for all models over it: by fixed texts, and no adapter."""
    products = read_products(folder / ONNX)
    seen = _look(folder / ONNX, texts, np.arange(len(texts.lengths)))
    # What models will read is unlike these texts: a token's own scale cuts nothing off.
    scales = {x: choose_scales(those, seen[x], may_be_fixed=False) for x, those in _by_input(products).items()}
    kept = _most_sensitive_first(products, seen, scales)[: round(_KEPT_OF_SHARED * len(products))]
    write_int8(folder / ONNX, folder / INT8, scales=scales, kept=kept)


def choose_shared_format(
    base: Path, model: OnnxClassifier, prepared: Prepared, task: Task, probe: TokenTable, texts: int
) -> tuple[Serving, list[list[float]] | None]:
    """Which of the files of a shared network a model over it is served from. See `write_served_format`."""
    if (refusal := _too_few(prepared, texts)) is not None:
        return refusal, None
    trial = _Trial(base, prepared, task, texts, model.read, model.adapter)
    serving = trial.judge([])
    return serving, trial.answer_in_int8(probe) if serving.format == "onnx-int8" else None


def _too_few(prepared: Prepared, texts: int) -> Serving | None:
    rows = len(_drawn_rows(prepared))
    if rows >= texts:
        return None
    return Serving(format="onnx-float32", reason=f"int8 is judged by {texts} texts, and the dataset has {rows}")


class _Trial:
    """The texts that decide, and what the float32 file of a folder answers to them."""

    def __init__(
        self,
        folder: Path,
        prepared: Prepared,
        task: Task,
        texts: int,
        read: Read = lambda outputs: outputs,
        adapter: Adapter | None = None,
    ) -> None:
        """read: from what the files give (N, …) to outputs (N, H). adapter: for files that are shared."""
        self._file, self._prepared, self._task, self._read = folder / INT8, prepared, task, read
        self._adapter = adapter or {}
        self._rows = rows = _drawn_rows(prepared)[:texts]
        self._exact = self._answers(folder / ONNX, prepared.tokens, rows)
        held_out = np.flatnonzero(prepared.resolved.parts[rows] != Part.TRAIN)
        labels = prepared.targets.labels[torch.from_numpy(rows[held_out])]
        self._labelled = HeldOut(held_out, labels.numpy())

    def judge(self, kept: list[str]) -> Serving:
        """Whether the int8 file that is there now, which leaves some layers in float32, may be served."""
        answers = self._answers(self._file, self._prepared.tokens, self._rows)
        kind = self._prepared.resolved.state.type
        agreement = compare(self._task, kind, self._exact, answers, self._labelled)
        if (objection := agreement.objection()) is not None:
            return Serving(format="onnx-float32", reason=f"in int8 {objection}", agreement=agreement)
        reason = f"it answers as float32 does: {agreement.changed:.1%} of {len(self._rows)} answers changed"
        return Serving(format="onnx-int8", reason=reason, agreement=agreement, float32_layers=kept)

    def answer_in_int8(self, probe: TokenTable) -> list[list[float]]:
        """To each text of a table, (N, H)."""
        answers: list[list[float]] = self._answers(self._file, probe, np.arange(len(probe.lengths))).tolist()
        return answers

    def _answers(self, file: Path, tokens: TokenTable, rows: Rows) -> NDArray[np.float32]:
        session = open_session(file, torch.get_num_threads())
        return self._read(_outputs(session, tokens, rows, self._adapter))


def _by_input(products: Sequence[Product]) -> dict[str, list[Product]]:
    names = dict.fromkeys(product.input for product in products)
    return {name: [product for product in products if product.input == name] for name in names}


def _drawn_rows(prepared: Prepared) -> Rows:
    """The rows of the test part, then of validation, then of train, each shuffled by the run's seed."""
    chance = np.random.default_rng(prepared.spec.training.seed)
    parts = [chance.permutation(prepared.rows_of(part)) for part in (Part.TEST, Part.VALIDATION, Part.TRAIN)]
    return np.concatenate(parts)


def _outputs(
    session: onnxruntime.InferenceSession, tokens: TokenTable, rows: Rows, adapter: Adapter
) -> NDArray[np.float32]:
    """(N, H), in the order given."""
    outputs: dict[int, NDArray[np.float32]] = {}
    for some in cut_step(rows, tokens.lengths, max_tokens=MAX_BATCH_TOKENS, max_rows=None):
        outputs.update(zip(some.tolist(), _run(session, tokens, some, adapter)[0], strict=True))
    return np.stack([outputs[row] for row in rows.tolist()])


def _run(
    session: onnxruntime.InferenceSession, tokens: TokenTable, rows: Rows, adapter: Adapter
) -> list[NDArray[np.float32]]:
    inputs = {**{name: tensor.numpy() for name, tensor in tokens.inputs_of(rows).items()}, **adapter}
    answers: list[NDArray[np.float32]] = session.run(
        None, {given.name: inputs[given.name] for given in session.get_inputs()}
    )
    return answers


def _look(file: Path, tokens: TokenTable, rows: Rows) -> dict[str, Seen]:
    """What the products of a float32 file read of these texts, by the input's name."""
    exposed = file.with_name(f"exposed-{file.name}")
    try:
        expose_inputs(file, exposed)
        session = open_session(exposed, torch.get_num_threads())
    finally:
        exposed.unlink(missing_ok=True)
    names, adapter = [output.name for output in session.get_outputs()], no_adapter(session)
    chance = np.random.default_rng(0)
    share = _SEEN_TOKENS / max(1, int(tokens.lengths[rows].sum()))
    largest: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    some: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for batch in cut_step(rows, tokens.lengths, max_tokens=_SEEN_AT_ONCE, max_rows=None):
        is_token = tokens.inputs_of(batch)["attention_mask"].numpy().astype(bool)
        for name, x in zip(names, _run(session, tokens, batch, adapter), strict=True):
            # The last layer may read the first tokens alone.
            read = x[is_token] if x.shape[:2] == is_token.shape else x.reshape(-1, x.shape[-1])
            largest[name].append(np.abs(read).max(0))
            some[name].append(read[chance.random(len(read)) < max(share, 1 / len(read))])
    return {name: Seen(np.max(largest[name], axis=0), np.concatenate(some[name])) for name in names}


def _most_sensitive_first(
    products: Sequence[Product], seen: Mapping[str, Seen], scales: Mapping[str, Scales]
) -> list[str]:
    """The layers' names, by the error that int8 makes in each where it reads what float32 gives it."""
    errors = {
        product.name: product.rounding_error(seen[product.input].tokens, scales[product.input]) for product in products
    }
    return sorted(errors, key=errors.__getitem__, reverse=True)
