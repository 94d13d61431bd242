"""What a benchmark's server should have answered, and how many of its answers are wrong."""

import json
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Load, text
from benchmarks.servers import MAX_LENGTH, THREADS, Kind, Model

BATCH = 32  # texts of a pass of torch

Body = dict[str, Any]
Probabilities = NDArray[np.floating[Any]]
Places = NDArray[np.integer[Any]]


class Reference:
    """What torch answers to the texts in float32, and what the served file does to each of them alone."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[tuple[str, str, int], Probabilities] = {}

    @cached_property
    def labels(self) -> list[str]:
        """In the order of the probabilities."""
        return [label for _, label in sorted(self._network.config.id2label.items())]

    def torch_answers(self, kind: str, numbers: Sequence[int]) -> Probabilities:
        """(N, C)."""

        def answer(texts: list[str]) -> Probabilities:
            rows = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            made: Probabilities = self._network(**rows).logits.softmax(-1).numpy()
            return made

        return self._answers("torch", kind, numbers, BATCH, answer)

    def lone_answers(self, kind: str, numbers: Sequence[int]) -> Probabilities:
        """(N, C): of the served file, a text at a time."""

        def answer(texts: list[str]) -> Probabilities:
            logits = self._served.run(texts)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            made: Probabilities = odds / odds.sum(axis=1, keepdims=True)
            return made

        return self._answers("alone", kind, numbers, 1, answer)

    def _answers(
        self, who: str, kind: str, numbers: Sequence[int], batch: int, answer: Callable[[list[str]], Probabilities]
    ) -> Probabilities:
        texts = {number: text(kind, number) for number in numbers if (who, kind, number) not in self._known}
        new = sorted(texts, key=lambda number: len(texts[number]))
        for start in range(0, len(new), batch):
            some = new[start : start + batch]
            for number, row in zip(some, answer([texts[number] for number in some]), strict=True):
                self._known[who, kind, number] = row
        return np.array([self._known[who, kind, number] for number in numbers])

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._model.folder)

    @cached_property
    def _network(self) -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        return AutoModelForSequenceClassification.from_pretrained(self._model.folder).eval()

    @cached_property
    def _served(self) -> "ServedFile":
        return ServedFile(self._model)


class ServedFile:
    """The ONNX file that our server answers from, opened as it opens it."""

    def __init__(self, model: Model) -> None:
        from ml.artifact.tokenizer import load_tokenizer
        from ml.inference.backends import open_session

        self.session = open_session(model.file, THREADS)
        self._tokenizer = load_tokenizer(model.folder, MAX_LENGTH)
        self._names = [each.name for each in self.session.get_inputs()]

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """One encoding a text."""
        from ml.artifact.tokenizer import tokenize

        return tokenize(self._tokenizer, texts)

    def feeds(self, encodings: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """The session's inputs, (N, longest)."""
        columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        shape = (len(encodings), max(map(len, encodings)))
        feeds = {name: np.zeros(shape, np.int64) for name in self._names}
        for name, feed in feeds.items():
            for i, encoding in enumerate(encodings):
                feed[i, : len(encoding)] = getattr(encoding, columns[name])
        return feeds

    def run(self, texts: Sequence[str]) -> Probabilities:
        """The logits (N, C)."""
        (logits,) = self.session.run(None, self.feeds(self.encode(texts)))
        return np.asarray(logits)


# The label must be the reference's where its probability leads by more than this, and no probability be farther off.
SURE_MARGIN = 0.05
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02, "int8": 0.02}


def judge(load: Load, kind: Kind, reference: Reference, texts_kind: str, texts: int) -> Body:
    """How many requests failed, how many answers are wrong, and how far they are from torch's.

    texts_kind: which texts were asked for; texts: in a request. An int8 file may answer otherwise than torch (how
    often, is for its gate to decide), but always the same: an answer is wrong where the text alone gets another.
    """
    numbers: list[int] = []
    labels: list[str] = []
    scores: list[float] = []
    stages: dict[str, list[float]] = {}
    failed, failure = load.broken, ""
    for reply in load.replies:
        try:
            body = json.loads(reply.body)
            answers = kind.read(body)
            if reply.status != 200 or len(answers) != texts:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            failed, failure = failed + 1, f"{reply.status} {reply.body[:200].decode(errors='replace')}"
            continue
        numbers += range(reply.number, reply.number + texts)
        labels += [label for label, _ in answers]
        scores += [score for _, score in answers]
        for stage, milliseconds in body.get("timings_ms", {}).items():
            stages.setdefault(stage, []).append(milliseconds)
    found: Body = {"failed": failed, "failure": failure, "answers": len(numbers)}
    if not numbers:
        return found
    expected = reference.torch_answers(texts_kind, numbers)  # (N, C)
    said = np.array([reference.labels.index(label) for label in labels])
    moves = _moves(scores, said, expected)
    is_off = _is_wrong(scores, said, expected, TOLERANCE[kind.precision])
    is_wrong = is_off
    if kind.precision == "int8":
        is_wrong = _is_wrong(scores, said, reference.lone_answers(texts_kind, numbers), TOLERANCE["int8"])
    return {
        **found,
        "wrong": int(is_wrong.sum()),
        "off_torch_share": float(is_off.mean()),
        "changed_share": float((said != expected.argmax(1)).mean()),
        "mean_move": float(moves.mean()),
        "most_moved": float(moves.max()),
        "stages_ms": {stage: statistics.median(values) for stage, values in stages.items()},
    }


def _moves(scores: Sequence[float], said: Places, expected: Probabilities) -> Probabilities:
    return np.abs(np.array(scores) - expected[np.arange(len(said)), said])


def _is_wrong(scores: Sequence[float], said: Places, expected: Probabilities, tolerance: float) -> NDArray[Any]:
    ranked = np.sort(expected, axis=1)
    is_sure = ranked[:, -1] - ranked[:, -2] > SURE_MARGIN
    wrong: NDArray[Any] = (is_sure & (said != expected.argmax(1))) | (_moves(scores, said, expected) > tolerance)
    return wrong
