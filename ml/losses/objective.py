"""What a step minimises: weighted terms, combined. It knows shares of losses, not how the network made them."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from ml.losses.base import Loss, LossContext, Targets
from ml.losses.combine import COMBINES, CombineRule
from ml.losses.fgm import FgmLoss
from ml.losses.registry import build_loss
from ml.losses.weights import weight_at
from ml.models.outputs import Outputs
from ml.specs.losses.base import LossSpec, Need
from ml.specs.losses.composition import Composition, FixedCombine, Weight, term_id, terms_of


@dataclass(frozen=True)
class TermFacts:
    """A term's name and weight."""

    id: str
    weight: Weight
    is_auxiliary: bool


class Objective(nn.Module):
    """K terms and the rule that combines them. Its buffers and parameters are the adaptive state of a run."""

    def __init__(self, spec: LossSpec | Composition, context: LossContext) -> None:
        super().__init__()
        terms = terms_of(spec)
        self.facts = [TermFacts(term_id(term), term.weight, bool(term.loss.auxiliary_for)) for term in terms]
        self.losses = nn.ModuleList(build_loss(term.loss, context) for term in terms)
        combine = spec.combine if isinstance(spec, Composition) else FixedCombine(type="fixed")
        is_regression = ["regression" in term.loss.readings for term in terms]
        self.rule: CombineRule = COMBINES[combine.type](combine, is_regression)
        self.needs: frozenset[Need] = frozenset(need for term in terms for need in term.loss.needs)
        self.is_additive = all(term.loss.is_additive for term in terms)
        for loss in self._losses:
            if isinstance(loss, FgmLoss):
                loss.stand_beside(self.main)
        self._counting = self._losses

    def on(self, device: str) -> Self:
        """Move to a device, but for a copy of the terms that counts: a GPU would have to be waited for."""
        if device != "cpu":
            self._counting = list(deepcopy(self.losses))  # type: ignore[arg-type]
        return self.to(device)

    @property
    def names(self) -> list[str]:
        """What the terms are called."""
        return [fact.id for fact in self.facts]

    @property
    def main(self) -> Loss:
        """The task's own loss: the first term that is not auxiliary."""
        for loss, fact in zip(self._losses, self.facts, strict=True):
            if not fact.is_auxiliary:
                return loss
        raise ValueError(f"'{self.facts[0].id}' is an auxiliary term: add a task loss")

    @property
    def epsilon(self) -> float:
        """How far an adversarial pass moves each row's word embeddings: that of the first term that needs one."""
        return next(loss.epsilon for loss in self._losses if isinstance(loss, FgmLoss))

    def denominators(self, targets: Targets) -> list[float]:
        """The divisor of each term over all rows of a step, whose targets are on the CPU wherever the objective is.

        Raises ValueError where a task's loss has none: every label ignored, or of weight 0. An auxiliary term without
        a row to act on adds nothing.
        """
        sums = [float(targets.mix(loss.denominators).sum()) for loss in self._counting]
        for fact, total in zip(self.facts, sums, strict=True):
            if total <= 0 and not fact.is_auxiliary:
                raise ValueError(
                    f"no row of this step counts towards '{fact.id}': each label is ignored or has weight 0"
                )
        return sums

    def shares(self, outputs: Outputs, targets: Targets, denominators: Sequence[float]) -> Tensor:
        """What these rows add to each term of the step: Σ numerators / denominator, (K,)."""
        parts = [
            targets.mix(partial(loss.numerators, outputs)).sum() / total if total > 0 else outputs.logits.new_zeros(())
            for loss, total in zip(self._losses, denominators, strict=True)
        ]
        return torch.stack(parts)

    def base_weights(self, progress: float) -> Tensor:
        """The weight each term has by its schedule, (K,). progress: share of all steps made."""
        return torch.tensor([weight_at(fact.weight, progress) for fact in self.facts], dtype=torch.float64)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the terms."""
        for loss in (*self._losses, *self._counting):
            loss.begin_epoch(epoch)

    @property
    def _losses(self) -> list[Loss]:
        return list(self.losses)  # type: ignore[arg-type]
