"""What a model makes of many texts, in order: the part of bulk work that takes long, and goes on where it was stopped.

What was answered is written down as checkpoints are, as outputs and not as text, so that a checkpoint is small and a
worker that was lost costs little. Texts are answered in chunks that begin at the same rows however often the work is
interrupted, so its outputs come to the same bits. It knows no dataset, and not what the answers are for.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ml.artifact.description import INT8
from ml.artifact.manifest import (
    DamagedFolderError,
    DiskFullError,
    newest_verified,
    publish_folder,
    read_manifest,
    verify_folder,
)
from ml.artifact.tokenizer import Text
from ml.bulk.report import RequestCounts
from ml.cores import usable_cores
from ml.inference.backends import OnnxEngine
from ml.inference.classifier import OnnxClassifier, WrongAnswersError, load_classifier
from ml.inference.shared import Shared
from ml.specs.bulk import Bulk
from ml.tasks.base import Task
from ml.training.errors import StoppedError, UnfitModelError
from ml.training.run import Placement, RunDirectory

Outputs = NDArray[np.float32]
Item = TypeVar("Item")

CHUNK_TEXTS = 512  # in so many there are enough of like length, and they are answered within a second or some
OUTPUTS, TRUNCATED = "outputs.npy", "truncated.npy"
KEPT = 2  # checkpoints
# A checkpoint holds all outputs so far. It waits until there are so much more of them, so that all that is written
# stays within 21 times the last.
LEAST_GROWTH = 1 / 20
TELL_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class Answers:
    """What a model makes of N texts."""

    outputs: Outputs  # (N, H); NaN of a text that is not there
    truncated: NDArray[np.bool_]  # (N,): a part of the text was not read

    def decode(self, task: Task, places: slice | list[int]) -> list[dict[str, Any]]:
        """The results of some, as predictions have them."""
        results = task.decode(self.outputs[places])
        for result, is_truncated in zip(results, self.truncated[places], strict=True):
            if is_truncated:
                result["truncated"] = True
        return results

    def split(self, times: int) -> "list[Answers]":
        """So many equal parts."""
        parts = zip(np.split(self.outputs, times), np.split(self.truncated, times), strict=True)
        return [Answers(outputs, truncated) for outputs, truncated in parts]


def load_model(placement: Placement) -> OnnxClassifier:
    """The model that a run names, from the file that is served. Raises UnfitModelError where it would not be."""
    assert placement.model is not None, "bulk work names a model"
    artifact, runtime = placement.model
    try:
        for folder in {artifact, runtime}:
            verify_folder(folder, without=(INT8,))
        shared = Shared(OnnxEngine(placement.threads or usable_cores()))
        return load_classifier(artifact, runtime, shared)
    except (DamagedFolderError, WrongAnswersError) as error:
        raise UnfitModelError(f"the model cannot answer: {error}") from error


def answer(
    run: RunDirectory,
    classifier: OnnxClassifier,
    texts: Iterable[Text | None],
    total: int,
    *,
    counts: RequestCounts,
    spec: Bulk,
    dataset_sha256: str | None,
    stop: Callable[[], bool],
) -> Answers:
    """What is made of all `total` texts, some of which may be None.

    counts: the rows of the texts that were taken so far, kept up by who gives the texts, and told with the progress.

    Raises StoppedError once `stop()` is true, with a checkpoint of what was done where there is room for one.
    """
    # What the outputs depend on: a checkpoint of something else is of no use.
    asked = spec.model_dump(mode="json", exclude={"name", "metadata", "checkpoint_every_seconds"})
    fingerprint = {"spec": asked, "dataset_sha256": dataset_sha256, "files": [OUTPUTS, TRUNCATED]}
    answers = Answers(np.full((total, classifier.task.width), np.nan, np.float32), np.zeros(total, np.bool_))
    done = saved = _resume(run, answers, fingerprint)
    begun_with, begun_at = done, time.monotonic()
    saved_at, told_at = begun_at, -TELL_EVERY_SECONDS
    for chunk in chunks(islice(texts, done, None)):
        if stop():
            if done > saved:
                _save(run, answers, done, fingerprint)
            raise StoppedError(f"stopped after {done} of {total} texts")
        _answer_chunk(classifier, chunk, answers, done)
        done += len(chunk)
        now = time.monotonic()
        if now - told_at >= TELL_EVERY_SECONDS or done == total:
            left = (now - begun_at) / (done - begun_with) * (total - done)
            data = {"step": done, "steps": total, "eta_seconds": round(left, 1), "request_counts": counts.model_dump()}
            run.tell("progress", f"{done} of {total}", data)
            told_at = now
        if done < total and now - saved_at >= spec.checkpoint_every_seconds and done - saved >= LEAST_GROWTH * saved:
            _save(run, answers, done, fingerprint)
            saved, saved_at = done, now
    return answers


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of CHUNK_TEXTS, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK_TEXTS)):
        yield chunk


def _answer_chunk(classifier: OnnxClassifier, chunk: list[Text | None], answers: Answers, start: int) -> None:
    """Fill in what is made of those texts that are there, the first of which has its place at `start`."""
    places = [place for place, text in enumerate(chunk, start) if text is not None]
    if places:
        encodings = classifier.tokenize([text for text in chunk if text is not None])
        answers.outputs[places] = classifier.logits(encodings)
        answers.truncated[places] = [classifier.is_truncated(encoding) for encoding in encodings]


def _resume(run: RunDirectory, answers: Answers, fingerprint: dict[str, Any]) -> int:
    """Fill in what the newest checkpoint holds; returns of how many texts."""
    folder = newest_verified(
        run.checkpoints, lambda why: run.tell("message", f"checkpoint refused: {why}", level="warning")
    )
    if folder is None:
        return 0
    if read_manifest(folder)["fingerprint"] != fingerprint:
        run.tell("message", "something else was asked before: beginning anew", level="warning")
        shutil.rmtree(run.checkpoints)
        return 0
    kept = np.load(folder / OUTPUTS)
    answers.outputs[: len(kept)] = kept
    answers.truncated[: len(kept)] = np.load(folder / TRUNCATED)
    data = {"reason": "resumed", "checkpoint": folder.name, "step": len(kept)}
    run.tell("status", f"resumed after {len(kept)} texts", data)
    return len(kept)


def _save(run: RunDirectory, answers: Answers, done: int, fingerprint: dict[str, Any]) -> None:
    name, facts = f"step-{done:08d}", {"step": done, "fingerprint": fingerprint}
    try:
        with publish_folder(run.checkpoints / name, "checkpoint", facts) as folder:
            np.save(folder / OUTPUTS, answers.outputs[:done])
            np.save(folder / TRUNCATED, answers.truncated[:done])
    except DiskFullError as error:
        run.tell("message", f"{error.strerror}; the newest before it is kept", level="warning")
        return
    _remove_all_but_newest(run.checkpoints)
    total = len(answers.outputs)
    data = {"folder": name, "step": done, "epoch": done / total, "metrics": {}}
    run.tell("checkpoint", f"{done} of {total} texts are answered", data)


def _remove_all_but_newest(checkpoints: Path) -> None:
    for old in sorted(checkpoints.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
