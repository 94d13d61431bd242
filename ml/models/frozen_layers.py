"""The embeddings and lowest layers of an encoder, where nothing of them trains: they make the same of a text each time.

So that can be computed once, and the passes that train begin above. Between two passes the model is whole, and its
weights keep their names. It knows encoders that are built as BERT's are, not how they are trained.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ml.models.shortcuts import FIRST_TOKEN


class FrozenLayers:
    """The lowest `count` layers of a transformers classification model, and what is below them."""

    def __init__(self, model: Any, count: int) -> None:
        self.count = count
        self._encoder = model.base_model
        layers = self._encoder.encoder.layer
        self._alone = {"encoder.layer": layers[:count]}
        self._gone = {"encoder.layer": layers[count:], "embeddings": _Given()}
        if hasattr(self._encoder, "embeddings_project"):  # of ELECTRA, to the layers' width
            self._gone["embeddings_project"] = nn.Identity()

    @classmethod
    def of(cls, model: Any) -> "FrozenLayers | None":
        """As many as there are; None for none, and where layers are built otherwise."""
        if model.config.model_type not in FIRST_TOKEN:
            return None
        count, below = 0, [model.base_model.embeddings, getattr(model.base_model, "embeddings_project", None)]
        for layer in model.base_model.encoder.layer[:-1]:  # the last one answers for the first token alone
            below.append(layer)
            if any(weight.requires_grad for part in below if part is not None for weight in part.parameters()):
                break
            count += 1
        return cls(model, count) if count else None

    @torch.no_grad()
    def encode(self, **inputs: Tensor) -> Tensor:
        """input_ids, attention_mask and, where the model has it, token_type_ids: (B, L) int64 → (B, L, D).

        In the precision that the layer above would be given.
        """
        with self._replaced(self._alone):
            hidden: Tensor = self._encoder(**inputs).last_hidden_state
        return hidden

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Let the passes in this block begin above, with what `encode` returned as `inputs_embeds`."""
        with self._replaced(self._gone):
            yield

    @contextmanager
    def _replaced(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        whole = {name: self._encoder.get_submodule(name) for name in parts}
        try:
            for name, part in parts.items():
                self._encoder.set_submodule(name, part)
            yield
        finally:
            for name, part in whole.items():
                self._encoder.set_submodule(name, part)


class _Given(nn.Module):
    """In the place of embeddings."""

    def forward(self, *, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds
