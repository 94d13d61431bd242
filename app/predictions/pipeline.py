"""From texts to the rows that a model runs, and from its outputs to results. It knows no options and no scheduler."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding

from ml.artifact.tokenizer import Text
from ml.inference.classifier import Logits, OnnxClassifier, Row


class Pipeline:
    """One request: a row a text, cut at the model's max_length."""

    def __init__(self, classifier: OnnxClassifier) -> None:
        self.classifier = classifier
        self.encodings: Sequence[Encoding] = ()

    def tokenize(self, texts: Sequence[Text]) -> Sequence[Row]:
        """The rows to run."""
        self.encodings = self.classifier.tokenize(texts)
        return self.encodings

    def decode(self, logits: Logits) -> list[dict[str, Any]]:
        """One result a text, of the logits of the rows."""
        return self.mark_truncated(self.classifier.task.decode(logits))

    def mark_truncated(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Say of which texts a part was not read."""
        for result, encoding in zip(results, self.encodings, strict=True):
            if self.classifier.is_truncated(encoding):
                result["truncated"] = True
        return results
