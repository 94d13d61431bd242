"""LitServe over a transformers folder: `python litserve_server.py FOLDER PORT MAX_LENGTH`."""

import sys
from typing import Any

import litserve
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MOST_REQUESTS, WAIT_SECONDS = 32, 0.001


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The texts of all requests of a batch go through the model together."""

    def __init__(self, folder: str, max_length: int) -> None:
        super().__init__(max_batch_size=MOST_REQUESTS, batch_timeout=WAIT_SECONDS)
        self.folder, self.max_length = folder, max_length

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model, in the process that runs it."""
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(self.folder).eval()

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """The texts of one request."""
        texts: list[str] = request["input"]
        return texts

    def predict(self, batch: list[list[str]]) -> list[list[dict[str, Any]]]:
        """Answer the requests of a batch."""
        texts = [text for texts in batch for text in texts]
        rows = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        with torch.inference_mode():
            scores, places = self.model(**rows).logits.softmax(-1).max(-1)
        names = self.model.config.id2label
        answers = [
            {"label": names[place], "score": score}
            for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        ]
        return [[answers.pop(0) for _ in texts] for texts in batch]

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The reply to one request."""
        return {"results": output}


if __name__ == "__main__":
    folder, port, max_length = sys.argv[1:]
    api = Classifier(folder, int(max_length))
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
