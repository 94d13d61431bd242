"""One optimizer step: the same loss and gradient however its rows are cut into micro-batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ml.data.augmentation import Augmented
from ml.data.batches import Rows, cut_step
from ml.losses.base import Targets
from ml.losses.combine import CombineRule, Gradients
from ml.losses.objective import Objective
from ml.models.classifier import NativeClassifier
from ml.models.outputs import Outputs
from ml.training.errors import NothingToLearnError
from ml.training.machine import Machine


class Examples(Protocol):
    """Rows a network can read: tokens, or features that were encoded before."""

    lengths: NDArray[np.int64]  # (N,)
    widths: NDArray[np.int64]  # (N,) lengths, or the next of those that rows are padded to

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The network's inputs for these rows, padded to the widest of them."""


class Batch:
    """The rows of one optimizer step, each by its place in it: as the network reads them, and what is known of them."""

    def __init__(self, examples: Examples, targets: Targets, rows: Rows, augmented: Augmented | None = None) -> None:
        """rows: their numbers in `examples` and `targets`. augmented: the same rows, where they were changed."""
        self.rows = rows
        self.targets = targets.take(torch.from_numpy(rows))
        self._examples: Examples = examples
        self._numbers = rows
        if augmented is not None:
            self._examples, self._numbers = augmented.examples, np.arange(len(rows))
            if (mixture := augmented.mixture) is not None:
                other = self.targets.take(torch.from_numpy(mixture.partners))
                self.targets = replace(self.targets, other=other, share=torch.from_numpy(mixture.shares))
        self.lengths = self._examples.lengths[self._numbers]
        self.widths = self._examples.widths[self._numbers]

    def cut(self, machine: Machine, max_rows: int | None) -> Iterator[Rows]:
        """The places of each micro-batch's rows."""
        places = np.arange(len(self.rows))
        return cut_step(places, self.widths, max_tokens=machine.micro_batch_tokens, max_rows=max_rows)

    def part(self, places: Rows, machine: Machine) -> tuple[dict[str, Tensor], Targets]:
        """Inputs and targets of the rows at some places, on the device."""
        inputs = machine.put_each(self._examples.inputs_of(self._numbers[places]))
        return inputs, self.targets.take(torch.from_numpy(places)).each(machine.put)


@dataclass(frozen=True)
class StepReport:
    """What one step did. Gradients are left on the network, not yet unscaled or clipped.

    Its numbers stay on the device until they are asked for: a GPU must be waited for then.
    """

    values: Tensor  # (1 + K,) float64: the loss, and each term
    names: Sequence[str]  # of the K terms
    rows: int
    real_tokens: int
    padded_tokens: int

    @property
    def loss(self) -> float:
        """What was minimised."""
        return float(self.values[0])

    @property
    def terms(self) -> Mapping[str, float]:
        """Each term by its name, not weighted."""
        return dict(zip(self.names, self.values[1:].tolist(), strict=True))


UNSCALED = GradScaler(enabled=False)
Forward = Callable[..., Outputs]


def backward_step(
    network: nn.Module,
    objective: Objective,
    batch: Batch,
    machine: Machine,
    micro_batch_rows: int | None,
    progress: float,
    scaler: GradScaler = UNSCALED,
    forward: Forward | None = None,
) -> StepReport:
    """Accumulate the gradient of the objective over all rows of a step, times the scaler's factor.

    Every divisor is that of the whole step, known before the first forward pass, so each micro-batch adds exactly its
    share. progress: share of all steps made, for scheduled weights. forward: the network compiled, where it is.
    Raises NothingToLearnError when no row of the step counts.
    """
    rows = batch.rows
    try:
        denominators = objective.denominators(batch.targets)
    except ValueError as error:
        raise NothingToLearnError(f"{error} (rows {', '.join(str(row + 1) for row in rows[:5])}, …)") from error
    base = machine.put(objective.base_weights(progress))
    rule = objective.rule
    totals = torch.zeros(len(denominators), dtype=torch.float64, device=machine.device)
    by_term: list[Gradients] = []
    padded = 0
    most_rows = micro_batch_rows if objective.is_additive else len(rows)
    for micro in batch.cut(machine, most_rows):
        inputs, known = batch.part(micro, machine)
        outputs = run_passes(forward or network, objective, inputs, known, machine, scaler)
        shares = objective.shares(outputs, known, denominators).double()
        if rule.needs_term_gradients:
            by_term = _accumulate(by_term, scaler.scale(shares), network)
        else:
            scaler.scale((rule.weights(base) * shares).sum()).backward()  # type: ignore[no-untyped-call]
        totals += shares.detach()
        padded += len(micro) * int(batch.widths[micro].max())
    weights = rule.weights(base).detach()
    if rule.needs_term_gradients:
        _set_gradients(network, _merge(rule, by_term, weights, totals, scaler))
    loss = (weights * totals).sum()
    for penalty in (rule.penalty(), network.tuner.penalty() if isinstance(network, NativeClassifier) else None):
        if penalty is not None:
            scaler.scale(penalty).backward()  # type: ignore[no-untyped-call]
            loss += penalty.detach()
    rule.observe(totals)
    values = torch.cat([loss[None], totals])
    return StepReport(values, objective.names, len(rows), int(batch.lengths.sum()), padded)


def run_passes(
    network: Forward,
    objective: Objective,
    inputs: dict[str, Tensor],
    targets: Targets,
    machine: Machine,
    scaler: GradScaler = UNSCALED,
) -> Outputs:
    """The forward passes that the objective's terms need, in full precision."""
    if "adversarial" in objective.needs:
        return _with_adversarial(network, objective, inputs, targets, machine, scaler)
    with machine.autocast():
        outputs: Outputs = network(**inputs)
        second = network(**inputs) if "second_forward" in objective.needs else None
    return _full(outputs, second, None)


def _with_adversarial(
    network: Forward,
    objective: Objective,
    inputs: dict[str, Tensor],
    targets: Targets,
    machine: Machine,
    scaler: GradScaler,
) -> Outputs:
    """A further pass over word embeddings moved by ε along the gradient of the task's loss, row by row.

    Where the scaled gradient overflows float16, it moves nothing: the step is skipped then, or the scale lower soon.
    """
    assert isinstance(network, NativeClassifier), "a spec that trains no encoder, or compiles it, is refused"
    with machine.autocast(), network.watched_words() as words:
        outputs = network(**inputs)
    second = None
    if "second_forward" in objective.needs:
        with machine.autocast():
            second = network(**inputs)
    full = outputs.in_full_precision()
    was_training = objective.main.training
    objective.main.eval()  # a loss with a state of its own must not take this for a step
    numerator = scaler.scale(objective.main.numerators(full, targets).sum())
    (slope,) = torch.autograd.grad(numerator, words[0], retain_graph=True)
    objective.main.train(was_training)
    if scaler.is_enabled():
        slope = slope.nan_to_num(0.0, 0.0, 0.0)
    length = slope.float().flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
    with machine.autocast(), network.moved_words((objective.epsilon * slope / length).detach()):
        adversarial = network(**inputs)
    return _full(outputs, second, adversarial)


def _full(outputs: Outputs, second: Outputs | None, adversarial: Outputs | None) -> Outputs:
    return replace(
        outputs.in_full_precision(),
        second=None if second is None else second.in_full_precision(),
        adversarial=None if adversarial is None else adversarial.in_full_precision(),
    )


def _accumulate(by_term: list[Gradients], shares: Tensor, network: nn.Module) -> list[Gradients]:
    """Add this micro-batch's gradient of each term by itself: one backward pass a term."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    fresh: list[Gradients] = []
    for k, share in enumerate(shares):
        if share.requires_grad:
            found = torch.autograd.grad(share, parameters, retain_graph=k < len(shares) - 1, allow_unused=True)
        else:
            found = ()
        fresh.append(
            [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(found or (None,) * len(parameters), parameters, strict=True)
            ]
        )
    if not by_term:
        return fresh
    return [[a + b for a, b in zip(old, new, strict=True)] for old, new in zip(by_term, fresh, strict=True)]


def _merge(
    rule: CombineRule, by_term: list[Gradients], weights: Tensor, totals: Tensor, scaler: GradScaler
) -> Gradients:
    """What the rule makes of the terms' gradients, which it sees unscaled; scaled as they came."""
    if not scaler.is_enabled():
        return rule.merge(by_term, weights, totals)
    scale = scaler.scale(torch.ones((), device=totals.device))
    merged = rule.merge([[part / scale for part in one] for one in by_term], weights, totals)
    return [part * scale for part in merged]


def _set_gradients(network: nn.Module, gradients: Gradients) -> None:
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
