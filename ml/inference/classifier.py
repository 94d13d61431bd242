"""A loaded model: texts in, results out, through onnxruntime. It knows one artifact, and no queue or cache.

A model that stores only its head, or an adapter and its head, runs over a session that others may share.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Encoding

from ml.artifact.description import ADAPTER, HEAD, INT8, ONNX, PROBE_TEXTS, read_answering
from ml.artifact.manifest import DamagedFolderError
from ml.artifact.tokenizer import Text, Tokens, load_tokenizer, tokenize
from ml.inference.adapters import stack_adapters
from ml.inference.backends import Backend
from ml.inference.cost import PassCost, measure_cost
from ml.inference.shared import Shared
from ml.tasks.agreement import score_moves

log = logging.getLogger(__name__)

Logits = NDArray[np.float32]
Row = Encoding | Tokens

# Padded tokens of one forward pass: larger ones gain no speed on a CPU and hold up the next caller.
MAX_BATCH_TOKENS = 4096
# What a score may move by: of an int8 file between the machine it was made on and this one, and by half precision.
SCORE_TOLERANCE = 0.02


class WrongAnswersError(Exception):
    """A loaded model that doesn't answer its probe texts as the trained one did."""


def load_classifier(folder: Path, runtime: Path, shared: Shared) -> "OnnxClassifier":
    """A model in the format it is to be served in; in float32 where its int8 file is damaged or answers wrongly, or
    is not for the device.

    folder, runtime, shared: see `OnnxClassifier`. Raises WrongAnswersError as it does.
    """
    if shared.reads_int8 and read_answering(folder).serving.format == "onnx-int8":
        try:
            return OnnxClassifier(folder, runtime, shared.session(runtime / INT8), is_int8=True, shared=shared)
        except (DamagedFolderError, WrongAnswersError) as error:
            log.warning("%s is served in float32: %s", folder, error)
    return OnnxClassifier(folder, runtime, shared.session(runtime / ONNX), shared=shared)


class OnnxClassifier:
    """One model, ready to answer."""

    def __init__(
        self,
        folder: Path,
        runtime: Path,
        session: Backend,
        *,
        is_int8: bool = False,
        shared: Shared | None = None,
    ) -> None:
        """folder: the artifact. runtime: the folder that `session` and the tokenizer come from: the artifact's own,
        or its base's where it stores less. is_int8: of what file the session is. shared: what other classifiers
        may have loaded already; none for one that stands alone, whose folder need not be published.

        Raises WrongAnswersError when the answers to the probe texts differ from the trained network's, or from the int8
        file's own where it was made.
        """
        self.description = read_answering(folder)
        self.task = self.description.build_task()
        self.session = session
        self.tokenizer = (shared.tokenizer if shared else load_tokenizer)(runtime, self.description.max_length)
        self._head = load_file(folder / HEAD) if self.description.head != "native" else None
        self.adapter = (
            {name: tensor[None] for name, tensor in load_file(folder / ADAPTER).items()}
            if self.description.is_adapted
            else {}
        )
        if shared and not self.adapter:
            outputs = shared.probe(self.session, self.tokenizer, self._answer_probe)
        else:
            outputs = self._answer_probe()
        if is_int8:
            assert self.description.int8_probe is not None, "it was written with the file"
            self._check_scores(self.read(outputs), self.description.int8_probe, "the int8 file's where it was made")
        elif session.is_exact:
            self._check_probe(self.read(outputs))
        else:
            self._check_scores(self.read(outputs), self.description.probe.logits, "the trained model's in float32")

    @property
    def own_bytes(self) -> int:
        """Of the adapter and the head that are its own; a native head is the session's."""
        return sum(array.nbytes for array in (*self.adapter.values(), *(self._head or {}).values()))

    def tokenize(self, texts: Sequence[Text]) -> list[Encoding]:
        """One encoding a text."""
        return tokenize(self.tokenizer, texts)

    def is_truncated(self, encoding: Encoding) -> bool:
        """Whether a part of its text is not read."""
        # Asked of the few that are as long as a row may be: it copies what was cut off.
        return len(encoding) == self.description.max_length and bool(encoding.overflowing)

    def logits(self, encodings: Sequence[Encoding]) -> Logits:
        """(N, C), in the order given, by one pass after the other."""
        return self.read(self._outputs(encodings))

    def _outputs(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """What the session makes of them, in the order given. Like lengths go together; the order is put back."""
        lengths = np.array([len(encoding) for encoding in encodings])
        order = np.argsort(-lengths, kind="stable")
        answers: list[NDArray[np.float32]] = []
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, MAX_BATCH_TOKENS // int(lengths[order[start]]))]
            answers.append(self.encode([encodings[row] for row in rows], alone=True))
            start += len(rows)
        result = np.concatenate(answers)
        result[order] = result.copy()
        return result

    @cached_property
    def cost(self) -> PassCost:
        """What a pass through the session takes, measured with the probe texts when it is first asked for."""
        return measure_cost(self.encode, self.tokenize(PROBE_TEXTS))

    def encode(
        self,
        encodings: Sequence[Row],
        *,
        networks: "Sequence[OnnxClassifier] | None" = None,
        alone: bool = False,
    ) -> NDArray[np.float32]:
        """What the session makes of them in one pass: the logits, or where it is shared the heads' features (N, D).

        networks: whose each row is; without it all are this one's. alone: no other pass runs.
        """
        longest, step = max(map(len, encodings)), self.session.length_step
        longest = max(longest, min(-(-longest // step) * step, self.description.max_length))
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        feeds: dict[str, Any] = stack_adapters([network.adapter for network in networks or [self]])
        for name in self.description.inputs:
            filler = self.description.pad_id if name == "input_ids" else 0
            padded = np.full((len(encodings), longest), filler, np.int64)
            for i, encoding in enumerate(encodings):
                padded[i, : len(encoding)] = getattr(encoding, columns[name])
            feeds[name] = padded
        return self.session.run(feeds, alone=alone)

    def read(self, outputs: NDArray[np.float32]) -> Logits:
        """The logits (N, C) of what `encode` made, by this classifier's own head."""
        if self._head is None:
            return outputs
        if self.description.head == "cosine":
            outputs = outputs / np.maximum(np.linalg.norm(outputs, axis=-1, keepdims=True), 1e-12)
        return np.asarray(outputs @ self._head["weight"].T + self._head["bias"], np.float32)

    def _answer_probe(self) -> NDArray[np.float32]:
        return self._outputs(self.tokenize(PROBE_TEXTS))

    def _check_probe(self, logits: Logits) -> None:
        worst = float(np.abs(logits - np.array(self.description.probe.logits)).max())
        if not worst <= self.description.probe.tolerance:
            raise WrongAnswersError(
                f"the loaded model's logits differ from the trained one's by {worst:.2g} on the probe texts; "
                f"at most {self.description.probe.tolerance:g} is served"
            )

    def _check_scores(self, logits: Logits, expected: list[list[float]], whose: str) -> None:
        worst = float(score_moves(self.task, np.array(expected), logits).max())
        if not worst <= SCORE_TOLERANCE:
            raise WrongAnswersError(
                f"the loaded model's scores for the probe texts differ from {whose} by {worst:.2g}; "
                f"at most {SCORE_TOLERANCE:g} is served"
            )
