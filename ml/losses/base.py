"""What a loss is: a numerator and a denominator for each row. The loop divides; a loss never averages.

`loss = Σ numerators / Σ denominators`, both sums over the whole optimizer step, however it is cut. Denominators
depend on the targets alone, so that the loop knows the divisor before its first backward pass.
"""

from abc import abstractmethod

from torch import Tensor, nn

from ml.models.outputs import Outputs

IGNORED = -100  # class id of a row without a target


class Loss(nn.Module):
    """One loss. Parameters arrive as keyword arguments without defaults: those live in the spec."""

    @abstractmethod
    def numerators(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """What each row adds to the loss. outputs.logits: (B, C) float32; targets: (B,) int64 → (B,)."""

    @abstractmethod
    def denominators(self, targets: Tensor) -> Tensor:
        """What each row adds to the divisor. targets: (B,) int64 → (B,); 0 where the target is ignored."""
