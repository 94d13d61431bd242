"""A loaded model: texts in, results out, through onnxruntime. It knows one artifact, and no queue or cache.

A model that stores only its head runs over the session of its encoder, which others may share.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Encoding

from ml.artifact.description import HEAD, INT8, ONNX, PROBE_TEXTS, read_description
from ml.artifact.manifest import DamagedFolderError, read_manifest, verify_file
from ml.artifact.tokenizer import Text, load_tokenizer, tokenize
from ml.inference.backends import Backend
from ml.inference.cost import PassCost, measure_cost
from ml.tasks.agreement import score_moves

log = logging.getLogger(__name__)

Logits = NDArray[np.float32]

# Padded tokens of one forward pass: larger ones gain no speed on a CPU and hold up the next caller.
MAX_BATCH_TOKENS = 4096
# What a score of an int8 file may move by between the machine it was made on and this one.
INT8_TOLERANCE = 0.02


class WrongAnswersError(Exception):
    """A loaded model that doesn't answer its probe texts as the trained one did."""


def load_classifier(folder: Path, runtime: Path, open_file: Callable[[Path], Backend]) -> "OnnxClassifier":
    """A model in the format it is to be served in; in float32 where its int8 file is damaged or answers wrongly.

    folder, runtime: see `OnnxClassifier`. Raises WrongAnswersError as it does.
    """
    if read_description(folder).serving.format == "onnx-int8":
        try:
            verify_file(folder, INT8, read_manifest(folder))
            return OnnxClassifier(folder, runtime, open_file(folder / INT8), is_int8=True)
        except (DamagedFolderError, WrongAnswersError) as error:
            log.warning("%s is served in float32: %s", folder, error)
    return OnnxClassifier(folder, runtime, open_file(runtime / ONNX))


class OnnxClassifier:
    """One model, ready to answer."""

    def __init__(self, folder: Path, runtime: Path, session: Backend, *, is_int8: bool = False) -> None:
        """folder: the artifact. runtime: the folder that `session` and the tokenizer come from: the artifact's own,
        or its base's where it stores only a head. is_int8: of what file the session is.

        Raises WrongAnswersError when the answers to the probe texts differ from the trained network's, or from the int8
        file's own where it was made.
        """
        self.description = read_description(folder)
        self.task = self.description.build_task()
        self.session = session
        self._tokenizer = load_tokenizer(runtime, self.description.max_length)
        self._head = load_file(folder / HEAD) if self.description.head != "native" else None
        if is_int8:
            self._check_int8_probe()
        else:
            self._check_probe()

    def tokenize(self, texts: Sequence[Text]) -> list[Encoding]:
        """One encoding a text."""
        return tokenize(self._tokenizer, texts)

    def logits(self, encodings: Sequence[Encoding]) -> Logits:
        """(N, C), in the order given, by one pass after the other of like lengths; the order is put back."""
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        order = np.argsort(-lengths, kind="stable")
        answers: list[Logits] = []
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, MAX_BATCH_TOKENS // int(lengths[order[start]]))]
            answers.append(self.encode([encodings[row] for row in rows], alone=True))
            start += len(rows)
        result = np.concatenate(answers)
        result[order] = result.copy()
        return self.read(result)

    @cached_property
    def cost(self) -> PassCost:
        """What a pass through the session takes, measured with the probe texts when it is first asked for."""
        return measure_cost(self.encode, self.tokenize(PROBE_TEXTS))

    def encode(self, encodings: Sequence[Encoding], *, alone: bool = False) -> NDArray[np.float32]:
        """What the session makes of them in one pass: the logits, or where it is an encoder its vectors (N, D).

        alone: no other pass runs.
        """
        longest = max(len(encoding.ids) for encoding in encodings)
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        feeds = {}
        for name in self.description.inputs:
            filler = self.description.pad_id if name == "input_ids" else 0
            padded = np.full((len(encodings), longest), filler, np.int64)
            for i, encoding in enumerate(encodings):
                padded[i, : len(encoding.ids)] = getattr(encoding, columns[name])
            feeds[name] = padded
        return self.session.run(feeds, alone=alone)

    def read(self, outputs: NDArray[np.float32]) -> Logits:
        """The logits (N, C) of what `encode` made, by this classifier's own head."""
        if self._head is None:
            return outputs
        if self.description.head == "cosine":
            outputs = outputs / np.maximum(np.linalg.norm(outputs, axis=-1, keepdims=True), 1e-12)
        return np.asarray(outputs @ self._head["weight"].T + self._head["bias"], np.float32)

    def _check_probe(self) -> None:
        expected = np.array(self.description.probe.logits)
        worst = float(np.abs(self.logits(self.tokenize(PROBE_TEXTS)) - expected).max())
        if not worst <= self.description.probe.tolerance:
            raise WrongAnswersError(
                f"the loaded model's logits differ from the trained one's by {worst:.2g} on the probe texts; "
                f"at most {self.description.probe.tolerance:g} is served"
            )

    def _check_int8_probe(self) -> None:
        expected = np.array(self.description.int8_probe)
        worst = float(score_moves(self.task, expected, self.logits(self.tokenize(PROBE_TEXTS))).max())
        if not worst <= INT8_TOLERANCE:
            raise WrongAnswersError(
                f"the int8 file's scores for the probe texts differ by {worst:.2g} from what they were where it was "
                f"made; at most {INT8_TOLERANCE:g} is served"
            )
