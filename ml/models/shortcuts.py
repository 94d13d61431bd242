"""Shorter ways to the same: what a classifier need not compute, and what torch computes slowly on a CPU.

They change no parameter and no name of one, so checkpoints and artifacts are those of the plain network.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

# Families whose classification head reads the first token alone, in layers that are built as BERT's are.
FIRST_TOKEN = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"})

ATTENTION = "sdpa_with_dropout"


def take_shortcuts(model: Any) -> None:
    """Change how a classification model computes, in place.

    Of a step of MiniLM on sst2 on one CPU core, in bfloat16, all of them take a third: the last layer 15%, attention
    and dropout 12% together, the hidden states' precision 6%.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            model.set_submodule(name, Dropout(module.p))
    if model.config.model_type in FIRST_TOKEN:
        _answer_for_first_token(model.base_model.encoder.layer[-1])
        model.base_model.embeddings.register_forward_hook(_in_lower_precision)


class Dropout(nn.Dropout):
    """Dropout with p to the nearest 2⁻¹⁶. On a CPU four draws come of one random number."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape."""
        return drop_out(hidden, self.p) if self.training else hidden


def drop_out(hidden: Tensor, p: float) -> Tensor:
    """Zeros with probability p, and the rest over 1 − p. Draws from torch's own generator.

    `torch.dropout` draws one number an element, on one core: 8% of a MiniLM step, against 2% this way.
    """
    dropped = round(p * 2**16)
    if hidden.device.type != "cpu" or dropped in (0, 2**16):
        return torch.dropout(hidden, p, train=True)
    drawn = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    is_kept = drawn.view(torch.int16)[: hidden.numel()].view(hidden.shape) >= dropped - 2**15
    return hidden * torch.where(is_kept, torch.tensor(2**16 / (2**16 - dropped), dtype=hidden.dtype), 0)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' interface: (B, heads, L, d) each → (B, L, heads, d).

    `scaled_dot_product_attention` has no kernel with dropout for CPUs, and then multiplies in float32 whatever it is
    given. This keeps the softmax in float32, and the products in the precision of the pass. An exported file has none
    of what the exporter adds for rows that may see nothing.
    """
    is_exported = torch.onnx.is_in_onnx_export()
    if query.device.type != "cpu" or not (dropout or is_exported):
        options |= {"dropout": dropout, "scaling": scaling}
        attended: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return attended, None
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(2, 3))  # (B, heads, L, L)
    if attention_mask is not None and is_exported:
        scores = scores + torch.where(attention_mask, 0.0, -torch.inf)
    elif attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = functional.softmax(scores, dim=-1, dtype=exact).to(value.dtype)
    weights = drop_out(weights, dropout) if dropout else weights
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def mask_padding(*, mask_function: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """transformers' mask (B, 1, L, L). Exported, where it hides padding alone, (B, 1, 1, L): 2 operators, not 70."""
    is_plain = mask_function is bidirectional_mask_function and torch.onnx.is_in_onnx_export()
    if is_plain and attention_mask is not None and attention_mask.shape[-1] == options["kv_length"]:
        return attention_mask[:, None, None, :].bool()
    mask: Tensor | None = sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **options)
    return mask


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, mask_padding)


def _answer_for_first_token(layer: Any) -> None:
    """Let a BERT layer answer for the first token alone, from the keys and values of all: (B, L, D) → (B, 1, D).

    In the last layer nothing reads the rest. Ten of its twelve D × D products a token go with it.
    """
    attention = layer.attention
    attention.self.forward = MethodType(_attend_from_first, attention.self)
    attention.output.register_forward_pre_hook(lambda _module, inputs: (inputs[0], inputs[1][:, :1]))


def _attend_from_first(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **_: Any
) -> tuple[Tensor, None]:
    def split(projected: Tensor) -> Tensor:  # (B, L, D) → (B, heads, L, d)
        return projected.view(*projected.shape[:2], -1, self.attention_head_size).transpose(1, 2)

    query, key, value = (
        split(self.query(hidden_states[:, :1])),
        split(self.key(hidden_states)),
        split(self.value(hidden_states)),
    )
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    mask = None if attention_mask is None else attention_mask[:, :, :1]
    interface = AttentionInterface()[self.config._attn_implementation]
    dropout = self.dropout.p if self.training else 0.0
    attended, _ = interface(self, query, key, value, mask, dropout=dropout, scaling=self.scaling)
    return attended.flatten(2), None


def _in_lower_precision(_module: nn.Module, _inputs: Any, hidden: Tensor) -> Tensor:
    """Embeddings in bfloat16 where products are: sums with float32 would be float32, and be cast for every product."""
    device = hidden.device.type
    is_lower = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return hidden.to(torch.bfloat16) if is_lower else hidden
