"""Writes the int8 file beside the float32 one, if its answers are good enough, and says why or why not.

It knows a prepared run's texts and one task; how a file becomes int8 is `ml.artifact.int8`'s.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ml.artifact.description import INT8, ONNX, Serving
from ml.artifact.int8 import Product, Seen, choose_scales, expose_inputs, read_products, write_int8
from ml.data.batches import Rows, cut_step
from ml.data.splits import Part
from ml.data.tokens import TokenTable
from ml.inference.backends import open_session
from ml.inference.classifier import MAX_BATCH_TOKENS
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


def write_served_format(
    folder: Path, prepared: Prepared, task: Task, probe: TokenTable, texts: int
) -> tuple[Serving, list[list[float]] | None]:
    """Write `folder`'s int8 file, and keep it if it may be served in the place of the float32 one that is there.

    texts: how many decide. Returns also what the int8 file answers to the probe texts (N, H), where it is kept.
    """
    drawn = _drawn_rows(prepared)
    rows = drawn[:texts]
    if len(rows) < texts:
        reason = f"int8 is judged by {texts} texts, and the dataset has {len(rows)}"
        return Serving(format="onnx-float32", reason=reason), None
    session = open_session(folder / ONNX, torch.get_num_threads())
    first = _outputs(session, prepared.tokens, rows)
    held_out = np.flatnonzero(prepared.resolved.parts[rows] != Part.TRAIN)
    labelled = HeldOut(held_out, prepared.targets.labels[torch.from_numpy(rows[held_out])].numpy())
    products = read_products(folder / ONNX)
    # Of other texts than those that decide, where the dataset has so many.
    seen = _look(folder / ONNX, prepared.tokens, drawn[-_SEEN_TEXTS:])
    scales = {x: choose_scales([product for product in products if product.input == x], seen[x]) for x in seen}
    order = _most_sensitive_first(products, seen, scales)
    for share in _KEPT_SHARES:
        kept = order[: round(share * len(products))]
        write_int8(folder / ONNX, folder / INT8, scales=scales, kept=kept)
        session = open_session(folder / INT8, torch.get_num_threads())
        second = _outputs(session, prepared.tokens, rows)
        agreement = compare(task, prepared.resolved.state.type, first, second, labelled)
        objection = agreement.objection()
        if objection is None:
            reason = f"it answers as float32 does: {agreement.changed:.1%} of {texts} answers changed"
            serving = Serving(format="onnx-int8", reason=reason, agreement=agreement, float32_layers=kept)
            return serving, _outputs(session, probe, np.arange(len(probe.lengths))).tolist()
    (folder / INT8).unlink()
    reason = f"in int8 {objection}; that is with {len(kept)} of {len(products)} layers left in float32"
    return Serving(format="onnx-float32", reason=reason, agreement=agreement), None


def _drawn_rows(prepared: Prepared) -> Rows:
    """The rows of the test part, then of validation, then of train, each shuffled by the run's seed."""
    chance = np.random.default_rng(prepared.spec.training.seed)
    parts = [chance.permutation(prepared.rows_of(part)) for part in (Part.TEST, Part.VALIDATION, Part.TRAIN)]
    return np.concatenate(parts)


def _outputs(session: onnxruntime.InferenceSession, tokens: TokenTable, rows: Rows) -> NDArray[np.float32]:
    """(N, H), in the order given."""
    outputs: dict[int, NDArray[np.float32]] = {}
    for some in cut_step(rows, tokens.lengths, max_tokens=MAX_BATCH_TOKENS, max_rows=None):
        outputs.update(zip(some.tolist(), _run(session, tokens, some)[0], strict=True))
    return np.stack([outputs[row] for row in rows.tolist()])


def _run(session: onnxruntime.InferenceSession, tokens: TokenTable, rows: Rows) -> list[NDArray[np.float32]]:
    inputs = tokens.inputs_of(rows)
    answers: list[NDArray[np.float32]] = session.run(
        None, {given.name: inputs[given.name].numpy() for given in session.get_inputs()}
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
    names = [output.name for output in session.get_outputs()]
    chance = np.random.default_rng(0)
    share = _SEEN_TOKENS / max(1, int(tokens.lengths[rows].sum()))
    largest: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    some: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for batch in cut_step(rows, tokens.lengths, max_tokens=_SEEN_AT_ONCE, max_rows=None):
        is_token = tokens.inputs_of(batch)["attention_mask"].numpy().astype(bool)
        for name, x in zip(names, _run(session, tokens, batch), strict=True):
            # The last layer may read the first tokens alone.
            read = x[is_token] if x.shape[:2] == is_token.shape else x.reshape(-1, x.shape[-1])
            largest[name].append(np.abs(read).max(0))
            some[name].append(read[chance.random(len(read)) < max(share, 1 / len(read))])
    return {name: Seen(np.max(largest[name], axis=0), np.concatenate(some[name])) for name in names}


def _most_sensitive_first(
    products: list[Product], seen: dict[str, Seen], scales: dict[str, NDArray[np.float32] | None]
) -> list[str]:
    """The layers' names, by the error that int8 makes in each where it reads what float32 gives it."""
    errors = {
        product.name: product.rounding_error(seen[product.input].tokens, scales[product.input]) for product in products
    }
    return sorted(errors, key=errors.__getitem__, reverse=True)
