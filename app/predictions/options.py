"""What a caller may ask beyond the plain answer: checked against the model's task, and done to its results."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidInputError
from app.predictions.pipeline import Pipeline
from app.predictions.schemas import (
    MAX_EXPLAINED_TEXTS,
    MAX_EXPLAINED_WORDS,
    MAX_TEXTS,
    PredictionRequest,
    Windows,
)
from ml.artifact.tokenizer import Text, tokenize_with_places
from ml.inference.classifier import Logits, OnnxClassifier, Row
from ml.inference.occlusion import find_words, leave_out
from ml.inference.windows import cut, pool
from ml.tasks.base import Task
from ml.tasks.multi_label import MultiLabelTask
from ml.tasks.ordinal import OrdinalTask
from ml.tasks.regression import RegressionTask
from ml.tasks.text_classification import TextClassificationTask

Pooled = NDArray[np.float64]
LabelTask = TextClassificationTask | MultiLabelTask
# Labels that a refusal lists.
_NAMED_LABELS = 50


def optioned(asked: PredictionRequest, classifier: OnnxClassifier, texts: Sequence[Text]) -> "OptionedPipeline":
    """The pipeline of a request with options. Raises InvalidInputError where one means nothing for the model."""
    task = classifier.task
    if isinstance(task, LabelTask):
        _check_of_labels(asked, task)
    else:
        _check_of_values(asked)
    if asked.explain:
        _check_explain(asked, texts)
        return ExplainedPipeline(asked, classifier)
    if asked.windows is not None:
        _check_windows(asked.windows, classifier)
        return WindowedPipeline(asked, classifier)
    return OptionedPipeline(asked, classifier)


class OptionedPipeline(Pipeline):
    """A request with options."""

    def __init__(self, asked: PredictionRequest, classifier: OnnxClassifier) -> None:
        """asked: fits the classifier's task."""
        super().__init__(classifier)
        self._asked = asked
        self._task = _with_threshold(classifier.task, asked.threshold)

    def decode(self, logits: Logits) -> list[dict[str, Any]]:
        """See `Pipeline`."""
        return self.finish(self.mark_truncated(self._task.decode(logits)), logits)

    def finish(self, results: list[dict[str, Any]], logits: Logits | Pooled) -> list[dict[str, Any]]:
        """What is done to plain results. logits: one row each."""
        for result, row in zip(results, logits, strict=True):
            if self._asked.raw:
                result["raw"] = dict(zip(self._task.output_names, row.tolist(), strict=True))
            if not isinstance(self._task, RegressionTask):
                _abstain(result, self._asked.abstain_below)
                result["scores"] = _choose(result["scores"], self._asked.labels, self._asked.top_k)
        return results


class WindowedPipeline(OptionedPipeline):
    """Long texts in several rows."""

    def tokenize(self, texts: Sequence[Text]) -> Sequence[Row]:
        """See `Pipeline`. Raises InvalidInputError where they are more than one call may ask."""
        assert self._asked.windows is not None
        rows: list[Row] = []
        self._counts: list[int] = []
        for encoding in self.classifier.tokenize(texts):
            before = len(rows)
            for window in cut(encoding, self._asked.windows.overlap):
                if len(rows) == MAX_TEXTS:
                    raise InvalidInputError(
                        f"these texts have more windows than the {MAX_TEXTS} that one call takes. Send fewer texts, "
                        "or a smaller 'overlap'.",
                        code="too_many_windows",
                        param="/windows",
                    )
                rows.append(window)
            self._counts.append(len(rows) - before)
        return rows

    def decode(self, logits: Logits) -> list[dict[str, Any]]:
        """See `Pipeline`."""
        assert self._asked.windows is not None
        pooled = partial(pool, counts=self._counts, pooling=self._asked.windows.pooling)
        results = self._task.decode_pooled(logits, pooled)
        for result, count in zip(results, self._counts, strict=True):
            result["windows"] = count
        return self.finish(results, pooled(logits))


class ExplainedPipeline(OptionedPipeline):
    """Each text, then each without one of its words."""

    def tokenize(self, texts: Sequence[Text]) -> Sequence[Row]:
        """See `Pipeline`. Raises InvalidInputError where they have more words than one call may explain."""
        self._texts = texts
        self.encodings = tokenize_with_places(self.classifier.tokenizer, texts)
        self._words = [find_words(encoding) for encoding in self.encodings]
        if (count := sum(map(len, self._words))) > MAX_EXPLAINED_WORDS:
            raise InvalidInputError(
                f"these texts have {count} words, and one call explains at most {MAX_EXPLAINED_WORDS}. "
                "Send fewer or shorter texts.",
                code="too_many_words",
                param="/input",
            )
        pairs = zip(self.encodings, self._words, strict=True)
        return [*self.encodings, *(leave_out(encoding, word) for encoding, words in pairs for word in words)]

    def decode(self, logits: Logits) -> list[dict[str, Any]]:
        """See `Pipeline`."""
        whole, without = logits[: len(self._texts)], logits[len(self._texts) :]
        results = super().decode(whole)
        scores, start = self._task.scores(whole), 0
        for i, (result, text, words) in enumerate(zip(results, self._texts, self._words, strict=True)):
            column = _explained_column(self._task, whole[i : i + 1])
            rest = self._task.scores(without[start : start + len(words)])[:, column]
            start += len(words)
            effects = (scores[i, column] - rest).tolist()
            parts = (text,) if isinstance(text, str) else text
            result["explanation"] = {
                "label": self._task.labels[column] if isinstance(self._task, LabelTask) else None,
                "words": [
                    {
                        "word": parts[word.sequence][word.start : word.end],
                        "part": ("text", "text_pair")[word.sequence],
                        "start": word.start,
                        "end": word.end,
                        "effect": effect,
                    }
                    for word, effect in zip(words, effects, strict=True)
                ],
            }
        return results


def _explained_column(task: Task, output: Logits) -> int:
    """Of a text's scores (1, S) the one that is answered."""
    if isinstance(task, TextClassificationTask):
        return int(task.answers(output)[0])
    return int(task.scores(output)[0].argmax())


def _with_threshold(task: Task, threshold: float | None) -> Task:
    if threshold is None or not isinstance(task, MultiLabelTask):
        return task
    return replace(task, thresholds=(threshold,) * len(task.labels))


def _abstain(result: dict[str, Any], below: float | None) -> None:
    if below is not None and result["score"] < below:
        result["labels" if "labels" in result else "label"] = None
        result["abstained"] = True


def _choose(scores: dict[str, float], labels: Sequence[str] | None, top_k: int | None) -> dict[str, float]:
    """Of the scores those of these labels, and of those the highest."""
    if labels is not None:
        scores = {label: scores[label] for label in labels}
    if top_k is not None:
        scores = dict(sorted(scores.items(), key=lambda item: -item[1])[:top_k])
    return scores


def _check_of_labels(asked: PredictionRequest, task: LabelTask) -> None:
    known = set(task.labels)
    for i, label in enumerate(asked.labels or ()):
        if label not in known:
            told = label[:100].encode(errors="replace").decode()  # half of a surrogate pair cannot be sent
            named = ", ".join(f"'{name}'" for name in task.labels[:_NAMED_LABELS])
            more = f" and {len(known) - _NAMED_LABELS} more" if len(known) > _NAMED_LABELS else ""
            raise InvalidInputError(
                f"'{told}' is no label of this model, which knows {named}{more}.",
                code="unknown_label",
                param=f"/labels/{i}",
            )
    if asked.threshold is not None and not isinstance(task, MultiLabelTask):
        raise _meaningless("threshold", "gives a text one label, the likeliest; abstain_below withholds an unsure one")
    if asked.abstain_below is not None and task.has_probabilities and not 0 <= asked.abstain_below <= 1:
        raise InvalidInputError(
            f"'abstain_below' is {asked.abstain_below:g}, and this model's scores lie between 0 and 1.",
            code="invalid_value",
            param="/abstain_below",
        )


def _check_windows(windows: Windows, classifier: OnnxClassifier) -> None:
    max_length = classifier.description.max_length
    width = max_length - classifier.tokenizer.num_special_tokens_to_add(is_pair=False)
    if windows.overlap >= width:
        raise InvalidInputError(
            f"'overlap' is {windows.overlap}, and a window of this model holds {width} tokens of a text. Send at most "
            f"{width - 1}; a quarter of a window is usual.",
            code="invalid_value",
            param="/windows/overlap",
        )
    if windows.pooling == "max" and isinstance(classifier.task, OrdinalTask):
        raise InvalidInputError(
            "'max' pooling means nothing for levels in an order, which are read from all their scores together. "
            "Send 'mean'.",
            code="option_not_for_task",
            param="/windows/pooling",
        )
    if classifier.description.takes_pairs:
        raise InvalidInputError(
            "windows are cut of single texts, and this model takes pairs. Leave 'windows' out: a pair is cut, the "
            "longer text first, and its result says so.",
            code="option_not_for_pairs",
            param="/windows",
        )


def _check_explain(asked: PredictionRequest, texts: Sequence[Text]) -> None:
    if asked.windows is not None:
        raise InvalidInputError(
            "'explain' and 'windows' don't go together. Send the part of the text that is to be explained.",
            code="options_conflict",
            param="/explain",
        )
    if len(texts) > MAX_EXPLAINED_TEXTS:
        raise InvalidInputError(
            f"'input' holds {len(texts)} texts, and one call explains at most {MAX_EXPLAINED_TEXTS}. "
            "Send several calls.",
            code="too_many_texts",
            param="/input",
        )


def _check_of_values(asked: PredictionRequest) -> None:
    for name in ("top_k", "labels", "threshold", "abstain_below"):
        if getattr(asked, name) is not None:
            raise _meaningless(name, "answers with a value, which has no labels and no score")


def _meaningless(option: str, because: str) -> InvalidInputError:
    return InvalidInputError(
        f"'{option}' means nothing here: this model {because}. Leave it out.",
        code="option_not_for_task",
        param=f"/{option}",
    )
