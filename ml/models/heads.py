"""The last layer: features (B, D) to outputs (B, H). It knows no loss; a loss's spec names the kind it wants."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.specs.losses.base import Head


class CosineHead(nn.Module):
    """The cosine of the angle between the features and each output's vector, times a scale.

    The margin of arcface and cosface belongs to the loss: it acts in training only.
    """

    def __init__(self, features: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, features))
        nn.init.xavier_normal_(self.weight)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) → (B, H), each within ±scale."""
        return self.scale * functional.linear(functional.normalize(features), functional.normalize(self.weight))


class SharedHead(nn.Module):
    """One score, shifted by H biases: z_k = w·x + b_k. With `ordered`, b falls with k, whatever is learned."""

    def __init__(self, features: int, outputs: int, *, ordered: bool) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)
        self.ordered = ordered
        if ordered:
            self.first = nn.Parameter(torch.empty(1))
            self.gaps = nn.Parameter(torch.empty(outputs - 1))
        else:
            self.bias = nn.Parameter(torch.empty(outputs))
        # Evenly spread, so that no level begins as unreachable, until it is known how the levels are spread.
        self.start_at(torch.linspace(1.0, -1.0, outputs) if outputs > 1 else torch.zeros(outputs))

    def start_at(self, biases: Tensor) -> None:
        """Begin with these biases (H,): an optimizer that moves each by its rate a step would take long."""
        with torch.no_grad():
            if not self.ordered:
                self.bias.copy_(biases)
                return
            steps = (biases[:-1] - biases[1:]).clamp_min(1e-3)
            self.first.copy_(biases[:1])
            self.gaps.copy_(torch.log(torch.expm1(steps)))  # the inverse of softplus

    @property
    def biases(self) -> Tensor:
        """(H,)."""
        if not self.ordered:
            return self.bias
        return torch.cat([self.first, self.first - functional.softplus(self.gaps).cumsum(0)])

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) → (B, H)."""
        scores: Tensor = self.score(features)
        return scores + self.biases


def build_head(kind: Head, features: int, outputs: int, scale: float) -> nn.Module:
    """A new head of a kind, drawn from the seed that is set. scale: of a cosine head."""
    if kind == "cosine":
        return CosineHead(features, outputs, scale)
    if kind in ("shared", "ordered"):
        return SharedHead(features, outputs, ordered=kind == "ordered")
    return nn.Linear(features, outputs)


def as_linear(head: nn.Module) -> nn.Linear | None:
    """The same map as a plain linear layer, or None where there is none: a cosine head normalises its input."""
    if isinstance(head, nn.Linear):
        return head
    if not isinstance(head, SharedHead):
        return None
    with torch.no_grad():
        biases = head.biases
        linear = nn.Linear(head.score.in_features, len(biases))
        linear.weight.copy_(head.score.weight.expand_as(linear.weight))
        linear.bias.copy_(biases)
    return linear
