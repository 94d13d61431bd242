"""Trained vectors that an encoder reads along with every text: as further tokens, or as further keys and values.

They wrap the encoder inside its classification class, so pooling, head and the token types of a pair stay as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache


class PromptedEncoder(nn.Module):
    """V trained vectors among the word embeddings, after the first token (Lester et al. 2021).

    Heads read the first token, and so still find it there. The vectors begin as words of the vocabulary.
    """

    def __init__(self, encoder: Any, virtual_tokens: int) -> None:
        super().__init__()
        words: Tensor = encoder.get_input_embeddings().weight.detach()
        self.encoder = encoder
        self.prompt = nn.Parameter(words[torch.randint(len(words), (virtual_tokens,))].clone())  # (V, D)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's."""
        return _words_of(self.encoder)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """(B, L) → the encoder's answer, of the texts' own L tokens."""
        options.pop("inputs_embeds", None)  # transformers' classes hand on a None
        rows, count = input_ids.shape[0], self.prompt.shape[0]
        if token_type_ids is not None:
            options["token_type_ids"] = _insert(token_type_ids, token_type_ids[:, :1].expand(rows, count))
        answer = self.encoder(
            inputs_embeds=_insert(self.get_input_embeddings()(input_ids), self.prompt.expand(rows, -1, -1)),
            attention_mask=_insert(attention_mask, attention_mask.new_ones(rows, count)),
            **options,
        )
        hidden = answer.last_hidden_state  # (B, V + L, D)
        answer.last_hidden_state = torch.cat([hidden[:, :1], hidden[:, 1 + count :]], 1)
        return answer


class PrefixedEncoder(nn.Module):
    """V trained keys and values in each layer's attention (Li and Liang 2021), without reparametrisation.

    For encoders that take past keys and values: `ml.specs.tuning.PREFIXABLE`.
    """

    def __init__(self, encoder: Any, virtual_tokens: int) -> None:
        super().__init__()
        config = encoder.config
        # Of N layers, keys and values of V tokens.
        heads = config.num_attention_heads
        shape = (config.num_hidden_layers, 2, heads, virtual_tokens, config.hidden_size // heads)
        self.encoder = encoder
        self.prefix = nn.Parameter(torch.randn(shape) * config.initializer_range)  # (N, 2, heads, V, d)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's."""
        return _words_of(self.encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        """(B, L) → the encoder's answer."""
        rows = input_ids.shape[0]  # the length of a tensor would be a constant of its ONNX file
        past = [tuple(one.expand(rows, -1, -1, -1) for one in layer) for layer in self.prefix]
        seen = attention_mask.new_ones(rows, self.prefix.shape[3])
        return self.encoder(
            input_ids=input_ids,
            attention_mask=torch.cat([seen, attention_mask], 1),
            past_key_values=DynamicCache(past),
            **options,
        )


def _words_of(encoder: Any) -> nn.Module:
    words: nn.Module = encoder.get_input_embeddings()
    return words


def _insert(row: Tensor, new: Tensor) -> Tensor:
    """(B, L, …) and (B, V, …) → (B, V + L, …): the first token, what is new, the others."""
    return torch.cat([row[:, :1], new, row[:, 1:]], 1)
