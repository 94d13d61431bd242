"""A base model's word embeddings cut down to the ids that a run's texts hold, and put back whole at its end.

On a small encoder the embeddings are half of the parameters, and every step pays for all of them: a dense gradient, its
norm, an optimizer pass. Rows whose id no text holds have no gradient: what training does to them is to multiply them by
one number. A row of ones stands in for them all, and ends as that number, whatever the optimizer, the schedule or an
average of the weights made of it. It knows a network's embeddings, not how they are trained.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class CompactEmbedding(nn.Module):
    """The rows of an embedding that some ids need, under the ids' own numbers, and a row of ones that none has.

    Another id is an IndexError.
    """

    places: Tensor  # (V,) where each id's row is

    def __init__(self, whole: nn.Embedding, used: Tensor) -> None:
        """used: (U,) distinct ids."""
        super().__init__()
        ones = torch.ones_like(whole.weight[:1])
        self.weight = nn.Parameter(torch.cat([whole.weight.detach()[used], ones]))  # (U + 1, D)
        nowhere = len(self.weight)  # past the end
        places = torch.full((whole.num_embeddings,), nowhere, device=used.device)
        places[used] = torch.arange(len(used))
        self.register_buffer("places", places, persistent=False)
        self.padding_idx = None if whole.padding_idx is None else int(places[whole.padding_idx])
        if self.padding_idx == nowhere:
            self.padding_idx = None

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) int64 → (B, L, D)."""
        return functional.embedding(self.places[ids], self.weight, self.padding_idx)


class CompactVocabulary:
    """A transformers model whose word embeddings are cut down until `restore`."""

    def __init__(self, model: Any, used: Tensor) -> None:
        self._model, self._used = model, used
        self._whole = model.get_input_embeddings()  # on the CPU, out of the optimizer's sight
        model.set_input_embeddings(CompactEmbedding(self._whole, used))

    def restore(self) -> None:
        """Put the whole embeddings back: the trained rows in their places, the others times what the ones became."""
        trained = self._model.get_input_embeddings().weight.detach().cpu()
        with torch.no_grad():
            self._whole.weight.mul_(trained[-1])
            self._whole.weight[self._used] = trained[:-1]
        self._model.set_input_embeddings(self._whole)
