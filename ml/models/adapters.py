"""Bottleneck adapters: a few weights in the course of an encoder that stays as it is otherwise."""

from torch import Tensor, nn
from torch.nn import functional

# Small enough that a network with new adapters answers as it did without them.
_DEVIATION = 1e-2


class Bottleneck(nn.Module):
    """x + W₂·gelu(W₁·x): down to `size` and up again (Houlsby et al. 2019). It begins as almost the identity."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=_DEVIATION, a=-2 * _DEVIATION, b=2 * _DEVIATION)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        change: Tensor = self.up(functional.gelu(self.down(x)))
        return x + change


def put_adapters(model: nn.Module, targets: list[str], size: int) -> None:
    """Let the output of each of these linear layers go through a bottleneck of its own."""
    for name in targets:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), name
        model.set_submodule(name, nn.Sequential(linear, Bottleneck(linear.out_features, size)))
