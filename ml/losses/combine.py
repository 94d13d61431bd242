"""Ways to make one number of K terms. Losses and weights are (K,) in float64; gradients are lists over parameters.

Each rule sees, per step: `weights` before each backward pass, always the same within a step; `penalty` and `observe`
after the last one. A step in which a term is 0 (no row to act on) tells nothing of that term's scale or pace.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ml.specs.losses.composition import Combine, DwaCombine, GradNormCombine, NormalizedCombine

Gradients = list[Tensor]  # one a parameter


class CombineRule(nn.Module):
    """Fixed: the weights as they are given. The base of every other rule."""

    # True: `merge` gets the whole step's gradient of each term by itself, at the cost of a backward pass a term.
    needs_term_gradients = False

    def __init__(self, spec: Combine, is_regression: Sequence[bool]) -> None:
        super().__init__()
        self.spec = spec
        self.terms = len(is_regression)

    def weights(self, base: Tensor) -> Tensor:
        """What each term is multiplied by in this step; it may carry a graph to the rule's own parameters."""
        return base

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a step, once, after `weights`."""
        return None

    def observe(self, losses: Tensor) -> None:
        """Take in the losses of a finished step."""

    def end_epoch(self) -> None:
        """Take in that an epoch has ended."""

    def merge(self, gradients: list[Gradients], weights: Tensor, losses: Tensor) -> Gradients:
        """One gradient of the terms' own (K lists), where `needs_term_gradients`."""
        del gradients, weights, losses
        raise TypeError(f"{type(self).__name__} does not see the terms' gradients")


class Normalized(CombineRule):
    """w_k / EMA(|L_k|): the average of the steps before, so the first step counts every term as it is."""

    average: Tensor

    def __init__(self, spec: NormalizedCombine, is_regression: Sequence[bool]) -> None:
        super().__init__(spec, is_regression)
        self.decay = spec.decay
        self.register_buffer("average", torch.full((self.terms,), torch.nan, dtype=torch.float64))

    def weights(self, base: Tensor) -> Tensor:
        """See the class."""
        return base / torch.nan_to_num(self.average, nan=1.0).clamp_min(1e-8)

    def observe(self, losses: Tensor) -> None:
        """Move the average."""
        sizes = losses.abs()
        moved = self.decay * self.average + (1 - self.decay) * sizes
        moved = torch.where(self.average.isnan(), sizes, moved)
        self.average.copy_(torch.where(sizes > 0, moved, self.average))


class Uncertainty(CombineRule):
    """w_k (c e^{−s_k} L_k + s_k / 2) with learned s_k, kept within ±5."""

    factors: Tensor

    def __init__(self, spec: Combine, is_regression: Sequence[bool]) -> None:
        super().__init__(spec, is_regression)
        self.log_variances = nn.Parameter(torch.zeros(self.terms, dtype=torch.float64))
        factors = [0.5 if regression else 1.0 for regression in is_regression]
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float64))
        self._base = torch.ones(self.terms, dtype=torch.float64)

    def weights(self, base: Tensor) -> Tensor:
        """See the class."""
        self._base = base
        return base * self.factors * torch.exp(-self._bounded())

    def penalty(self) -> Tensor:
        """Σ w_k s_k / 2: a term that a schedule holds at 0 must not let its s_k run off."""
        return (self._base * self._bounded()).sum() / 2

    def observe(self, losses: Tensor) -> None:
        """Bring back what the optimizer moved out of the bounds."""
        del losses
        with torch.no_grad():
            self.log_variances.clamp_(-5, 5)

    def _bounded(self) -> Tensor:
        # The bound's own gradient is 0 outside, where s_k could never turn back.
        s = self.log_variances
        return s + (s.clamp(-5, 5) - s).detach()


class Dwa(CombineRule):
    """K · softmax(r_k / T), r_k the ratio of the last two epochs' mean losses; equal for the first two epochs."""

    epoch_sum: Tensor
    epoch_steps: Tensor
    past: Tensor

    def __init__(self, spec: DwaCombine, is_regression: Sequence[bool]) -> None:
        super().__init__(spec, is_regression)
        self.temperature = spec.temperature
        self.register_buffer("epoch_sum", torch.zeros(self.terms, dtype=torch.float64))
        self.register_buffer("epoch_steps", torch.zeros((), dtype=torch.float64))
        self.register_buffer("past", torch.full((2, self.terms), torch.nan, dtype=torch.float64))

    def weights(self, base: Tensor) -> Tensor:
        """See the class."""
        before, last = self.past
        ratio = torch.where(before > 0, last / before, 1.0)
        paced = base * self.terms * torch.softmax(ratio / self.temperature, -1)
        return torch.where(self.past.isnan().any(), base, paced)

    def observe(self, losses: Tensor) -> None:
        """Sum up the epoch."""
        self.epoch_sum += losses
        self.epoch_steps += 1

    def end_epoch(self) -> None:
        """Keep the epoch's mean."""
        if not self.epoch_steps:
            return
        mean = self.epoch_sum / self.epoch_steps
        self.past.copy_(torch.stack([self.past[1], mean]))
        self.epoch_sum.zero_()
        self.epoch_steps.zero_()


class GradNorm(CombineRule):
    """Learned weights, summing to K, that bring ‖w_k g_k‖ towards their mean times (relative slowness)^α."""

    needs_term_gradients = True
    learned: Tensor
    first: Tensor

    def __init__(self, spec: GradNormCombine, is_regression: Sequence[bool]) -> None:
        super().__init__(spec, is_regression)
        self.alpha, self.rate = spec.alpha, spec.learning_rate
        self.register_buffer("learned", torch.ones(self.terms, dtype=torch.float64))
        self.register_buffer("first", torch.full((self.terms,), torch.nan, dtype=torch.float64))

    def weights(self, base: Tensor) -> Tensor:
        """See the class."""
        return base * self.learned

    def merge(self, gradients: list[Gradients], weights: Tensor, losses: Tensor) -> Gradients:
        """Σ w_k g_k; then move the learned weights one step."""
        self.first.copy_(torch.where(self.first.isnan() & (losses > 0), losses, self.first))
        norms = torch.stack([_norm(one) for one in gradients]).to(weights)
        self._move(weights, norms, losses)
        return _weighted_sum(gradients, weights)

    def _move(self, weights: Tensor, norms: Tensor, losses: Tensor) -> None:
        """One step down Σ |w_k ‖g_k‖ − wanted_k|, its slopes taken relative to their mean."""
        scaled = weights * norms
        # A term that a schedule holds at 0, without a row, or that overflowed has no norm to bring near the others.
        active = (scaled > 0) & scaled.isfinite()
        if int(active.sum()) < 2:
            return
        pace = torch.where(self.first > 0, losses / self.first, 1.0).clamp_min(0)[active]
        wanted = scaled[active].mean() * (pace / pace.mean().clamp_min(1e-12)) ** self.alpha
        old = self.learned[active]
        slopes = scaled[active] / old
        moved = old - self.rate * torch.sign(scaled[active] - wanted) * slopes / slopes.mean()
        moved = moved.clamp_min(1e-3)
        self.learned[active] = moved * old.sum() / moved.sum()


class PcGrad(CombineRule):
    """Each gradient loses its part along any other that it conflicts with, in random order; then they are added."""

    needs_term_gradients = True

    def merge(self, gradients: list[Gradients], weights: Tensor, losses: Tensor) -> Gradients:
        """See the class."""
        del losses
        whole = [[weight * part for part in one] for one, weight in zip(gradients, weights.tolist(), strict=True)]
        projected = []
        for k, own in enumerate(whole):
            kept = [part.clone() for part in own]
            for j in torch.randperm(self.terms).tolist():
                if j == k:
                    continue
                along = _dot(kept, whole[j])
                if along < 0:
                    factor = along / _dot(whole[j], whole[j]).clamp_min(1e-30)
                    kept = [part - factor.to(part.dtype) * other for part, other in zip(kept, whole[j], strict=True)]
            projected.append(kept)
        return _weighted_sum(projected, torch.ones(self.terms, dtype=torch.float64))


class Rlw(CombineRule):
    """K · softmax of a normal draw, new in every step."""

    drawn: Tensor

    def __init__(self, spec: Combine, is_regression: Sequence[bool]) -> None:
        super().__init__(spec, is_regression)
        self.register_buffer("drawn", torch.ones(self.terms, dtype=torch.float64))
        self.observe(self.drawn)

    def weights(self, base: Tensor) -> Tensor:
        """See the class."""
        return base * self.drawn

    def observe(self, losses: Tensor) -> None:
        """Draw for the next step: within a step every micro-batch must see the same weights."""
        del losses
        drawn = torch.softmax(torch.randn(self.terms, dtype=torch.float64), -1)
        self.drawn.copy_(self.terms * drawn, non_blocking=True)


COMBINES: dict[str, type[CombineRule]] = {
    "fixed": CombineRule,
    "normalized": Normalized,
    "uncertainty": Uncertainty,
    "dwa": Dwa,
    "gradnorm": GradNorm,
    "pcgrad": PcGrad,
    "rlw": Rlw,
}


def _weighted_sum(gradients: list[Gradients], weights: Tensor) -> Gradients:
    scales = weights.tolist()
    return [sum(s * part for s, part in zip(scales, parts, strict=True)) for parts in zip(*gradients, strict=True)]


def _dot(left: Gradients, right: Gradients) -> Tensor:
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]).sum()


def _norm(gradients: Gradients) -> Tensor:
    return _dot(gradients, gradients).sqrt()
