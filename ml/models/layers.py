"""The parts of a base model, told by the names of its parameters: `embeddings`, `layer.0`, …, and what is above them.

It knows names, not networks: they are the same in every family of encoders, and inside wrappers.
"""

import re
from collections.abc import Iterable, Sequence

from torch import nn

# A layer is what has a number, as in `ml.bases`.
_LAYER = re.compile(r"\.(\d+)\.")
# What MPNet's layers share is named by neither.
_EMBEDDINGS = re.compile(r"embed|relative_attention_bias")


def part_of(name: str) -> str | None:
    """The part that a parameter belongs to; None for a head, a pooler, a last norm."""
    if layer := _LAYER.search(name):
        return f"layer.{layer[1]}"
    return "embeddings" if _EMBEDDINGS.search(name) else None


def depths_below_head(names: Iterable[str]) -> dict[str, int]:
    """How far each parameter is below the head: 0 for the head, 1 for the last layer, most for the embeddings."""
    parts = {name: part_of(name) for name in names}
    layers = 1 + max((_number(part) for part in parts.values() if part is not None), default=-1)
    return {name: 0 if part is None else layers - _number(part) for name, part in parts.items()}


def freeze_parts(network: nn.Module, parts: Sequence[str]) -> None:
    """Let the parameters of these parts be as they are."""
    for name, parameter in network.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def _number(part: str) -> int:
    """A layer's number; the embeddings are below layer 0."""
    return -1 if part == "embeddings" else int(part.removeprefix("layer."))
