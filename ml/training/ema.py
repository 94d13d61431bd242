"""A moving average of the weights, which is measured and kept in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The mean of the trainable weights after each step, a step back counting `decay` times as much.

        mean_t = Σ_s decay^(t−s) w_s / Σ_s decay^(t−s)    s = 1 … t

    The weights before the first step are not among them, so a short run is not held back by a head that knew nothing.
    Float32, as the weights are.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        share = (1 - self._decay) / (1 - self._decay**step)
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), share)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put back what `weights` was."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    def swap(self) -> None:
        """Exchange the averages and the network's weights."""
        for name, parameter in self._parameters.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the averages in this block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
