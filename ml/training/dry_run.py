"""A few steps of a job that move no weight: what each term comes to, how hard it pulls, and on which labels.

They are the steps the job would begin with. It knows a prepared run and a machine; it reads and writes no file.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.data.batches import Rows, cut_step, steps_per_epoch
from ml.data.splits import Part
from ml.data.tokens import FeatureTable
from ml.losses.base import Loss
from ml.losses.combine import Gradients
from ml.specs.losses.composition import terms_of
from ml.training.errors import StoppedError
from ml.training.machine import Machine
from ml.training.prepare import Prepared, encode_rows
from ml.training.report import BatchReport, DryRunReport, Spread, TermReport
from ml.training.step import Batch, Examples, run_passes

MOST_STEPS = 4
MOST_LABELS = 50
MOST_ROWS_NAMED = 5
DOMINATES = 0.95  # share of the gradient
ONE_LABEL = 0.9  # share of a term
FEW_ROWS = 0.75  # share of the rows that count
NO_LABEL = "(no label)"


def dry_run(
    prepared: Prepared, machine: Machine, *, told: Callable[[int, int], None], stop: Callable[[], bool]
) -> DryRunReport:
    """Measure the first steps of a job. `told(done, steps)` is called after each.

    Raises StoppedError once `stop()` is true.
    """
    trial = _Trial(prepared, machine)
    for done, batch in enumerate(trial.batches, 1):
        if stop():
            raise StoppedError("stopped during a dry run")
        trial.measure(batch)
        told(done, len(trial.batches))
    return trial.report()


@dataclass
class Measured:
    """What was seen of one term, a number a step."""

    id: str
    weight: float
    by_label: NDArray[np.float64]  # (labels,) size of the numerators
    values: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rows: int = 0
    rows_counted: int = 0
    broken_rows: list[int] = field(default_factory=list)  # of the dataset, from 1: their numerator is not finite

    @property
    def pull(self) -> float:
        """The weighted gradient, summed over the steps."""
        return self.weight * sum(self.norms)


class _Trial:
    """The state that the steps share."""

    def __init__(self, prepared: Prepared, machine: Machine) -> None:
        self.prepared, self.machine = prepared, machine
        self.training = prepared.spec.training
        self.network = prepared.network.to(machine.device).train()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.objective = prepared.objective.to(machine.device)
        self.objective.rule.cpu()
        self.objective.begin_epoch(0)
        self.losses: list[Loss] = list(self.objective.losses)  # type: ignore[arg-type]
        self.labels = _Labels.of(prepared)
        weights = _mean_weights(self.objective.rule.weights, self.objective.base_weights)
        self.terms = [
            Measured(name, weight, np.zeros(len(self.labels.names)))
            for name, weight in zip(self.objective.names, weights, strict=True)
        ]
        self.forward_seconds: list[float] = []
        self.backward_seconds: list[float] = []
        self.encoding_seconds = 0.0
        self.steps = self._plan()
        examples = self._examples()
        self.batches = [prepared.batch_of(rows, step, examples) for step, rows in enumerate(self.steps)]

    def _plan(self) -> list[Rows]:
        tokens = self.prepared.tokens
        # Encoded rows are all of one length, as `fit` sees them.
        lengths = tokens.lengths if self.prepared.encoder is None else np.ones_like(tokens.lengths)
        return self.prepared.steps_of(0, lengths)[:MOST_STEPS]

    def _examples(self) -> Examples:
        if self.prepared.encoder is None:
            return self.prepared.tokens
        if (known := self.prepared.corpus.known_features(self.machine)) is not None:
            return known
        started = time.monotonic()
        examples = _EncodedRows(self.prepared, np.concatenate(self.steps), self.machine)
        self.encoding_seconds = time.monotonic() - started
        return examples

    def measure(self, batch: Batch) -> None:
        """One step: every term's value, and its gradient by itself."""
        known = batch.targets.each(self.machine.put)
        counted = [known.mix(loss.denominators) for loss in self.losses]
        divisors = [float(each.sum()) for each in counted]
        values = np.zeros(len(self.losses))
        gradients: list[Gradients] = [[torch.zeros_like(p) for p in self.parameters] for _ in self.losses]
        seconds = np.zeros(2)
        for micro in self._cut(batch):
            started = time.monotonic()
            numerators = self._numerators(batch, micro)
            sizes = [each.detach().double().cpu().numpy() for each in numerators]
            seconds[0] += time.monotonic() - started
            started = time.monotonic()
            for k, numerator in enumerate(numerators):
                if divisors[k] > 0:
                    self._pull(gradients[k], numerator.sum() / divisors[k])
                    values[k] += sizes[k].sum() / divisors[k]
                    self._note_labels(self.terms[k], batch.rows[micro], sizes[k])
            seconds[1] += time.monotonic() - started
        for term, value, gradient, count in zip(self.terms, values, gradients, counted, strict=True):
            term.values.append(float(value))
            term.norms.append(_norm(gradient))
            term.rows += len(batch.rows)
            term.rows_counted += int((count > 0).sum())
        self.forward_seconds.append(float(seconds[0]))
        self.backward_seconds.append(float(seconds[1]))

    def _cut(self, batch: Batch) -> Iterator[Rows]:
        most = self.training.micro_batch_rows if self.objective.is_additive else len(batch.rows)
        return batch.cut(self.machine, most)

    def _numerators(self, batch: Batch, micro: Rows) -> list[Tensor]:
        inputs, known = batch.part(micro, self.machine)
        outputs = run_passes(self.network, self.objective, inputs, known, self.machine)
        return [known.mix(partial(loss.numerators, outputs)) for loss in self.losses]

    def _pull(self, gradient: Gradients, share: Tensor) -> None:
        """Add the gradient of one term's share."""
        if not share.requires_grad:
            return
        found = torch.autograd.grad(share, self.parameters, retain_graph=True, allow_unused=True)
        for total, part in zip(gradient, found, strict=True):
            if part is not None:
                total += part

    def _note_labels(self, term: Measured, rows: Rows, sizes: NDArray[np.float64]) -> None:
        is_finite = np.isfinite(sizes)
        term.broken_rows += (rows[~is_finite] + 1).tolist()
        term.by_label += self.labels.spread(rows, np.where(is_finite, np.abs(sizes), 0.0))

    # ------------------------------------------------------------------------------------------------------- report

    def report(self) -> DryRunReport:
        """What was found."""
        assert self.prepared.spec.loss is not None, "a resolved spec has a loss"
        total = sum(term.pull for term in self.terms)
        shares = [term.pull / total if math.isfinite(total) and total > 0 else None for term in self.terms]
        types = [term.loss.type for term in terms_of(self.prepared.spec.loss)]
        terms = [
            TermReport(
                id=term.id,
                loss=kind,
                weight=term.weight,
                value=_spread(term.values),
                gradient_norm=_spread(term.norms),
                gradient_share=share,
                class_shares=self._class_shares(term),
                rows_counted=term.rows_counted / max(1, term.rows),
            )
            for term, kind, share in zip(self.terms, types, shares, strict=True)
        ]
        return DryRunReport(terms=terms, batches=self._batches(), warnings=warn(self.terms, terms))

    def _class_shares(self, term: Measured) -> dict[str, float]:
        total = float(term.by_label.sum())
        largest = np.argsort(-term.by_label, kind="stable")[:MOST_LABELS]
        return {self.labels.names[i]: float(term.by_label[i] / total) for i in largest if term.by_label[i] > 0}

    def _batches(self) -> BatchReport:
        lengths = self.prepared.tokens.lengths
        rows = np.concatenate(self.steps)
        step = self._seconds_per_step()
        if self.prepared.encoder is None:
            read = [batch.lengths[micro] for batch in self.batches for micro in self._cut(batch)]
            encoding = 0.0
        else:  # the job's encoder reads every text once, those of a length together
            budget = self.machine.micro_batch_tokens
            tried, read = (
                [lengths[some] for some in cut_step(which, lengths, max_tokens=budget, max_rows=None)]
                for which in (rows, np.arange(len(lengths)))
            )
            encoding = self.encoding_seconds * _padded(read) / _padded(tried)
        return BatchReport(
            steps=len(self.steps),
            rows=len(rows),
            tokens=int(lengths[rows].sum()),
            padding_share=1 - sum(int(some.sum()) for some in read) / _padded(read),
            seconds_per_step=step,
            estimated_seconds=encoding + step * self._job_steps(),
            device=self.machine.device,
            threads=self.machine.threads,
        )

    def _seconds_per_step(self) -> float:
        """A job makes one backward pass a step, unless its terms' gradients are combined."""
        passes = 1 if self.objective.rule.needs_term_gradients else len(self.losses)
        seconds = [a + b / passes for a, b in zip(self.forward_seconds, self.backward_seconds, strict=True)]
        return float(np.median(seconds[1:] or seconds))  # the first one warms up

    def _job_steps(self) -> int:
        rows = int((self.prepared.resolved.parts == Part.TRAIN).sum())
        whole = steps_per_epoch(rows, self.training.batch_size) * self.training.epochs
        return min(whole, self.training.max_steps or whole)


class _EncodedRows:
    """The features of some rows, under the rows' own numbers."""

    def __init__(self, prepared: Prepared, rows: Rows, machine: Machine) -> None:
        assert prepared.encoder is not None, "a frozen run has an encoder"
        self.lengths = self.widths = np.ones_like(prepared.tokens.lengths)
        self._places = {row: place for place, row in enumerate(rows.tolist())}
        self._features = FeatureTable(
            encode_rows(prepared.encoder, prepared.tokens, rows, machine, told=lambda _done: None)
        )

    def inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """The head's input for these rows: (B, D)."""
        return self._features.inputs_of(np.array([self._places[row] for row in rows.tolist()]))


@dataclass(frozen=True)
class _Labels:
    """What a row's part of the loss is put down to."""

    names: Sequence[str]
    of_rows: NDArray[np.float64] | NDArray[np.int64]  # (N,) an index into names, or (N, C) how much of each label

    @classmethod
    def of(cls, prepared: Prepared) -> "_Labels":
        targets = prepared.targets.labels.numpy()
        state = prepared.resolved.state
        if state.type == "regression":
            values = targets.astype(np.float64) * state.scale + state.shift
            edges = np.unique(np.quantile(values[prepared.rows_of(Part.TRAIN)], [0.2, 0.4, 0.6, 0.8]))
            return cls(_ranges(edges), np.searchsorted(edges, values, side="right"))
        if targets.ndim == 1:
            return cls(state.labels, targets)
        return cls([*state.labels, NO_LABEL], targets)

    def spread(self, rows: Rows, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Numbers of rows (B,) → their sums by name."""
        held = self.of_rows[rows]
        if held.ndim == 1:
            is_labelled = held >= 0
            return np.bincount(held[is_labelled], sizes[is_labelled], len(self.names)).astype(np.float64)
        totals = held.sum(-1, keepdims=True)
        parts = np.divide(held, totals, out=np.zeros_like(held, dtype=np.float64), where=totals > 0)
        return np.append(sizes @ parts, sizes[totals[:, 0] <= 0].sum())


def _ranges(edges: NDArray[np.float64]) -> list[str]:
    """What the parts between some edges are called, each holding its lower edge."""
    inner = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges.tolist())]
    return [f"below {edges[0]:.4g}", *inner, f"{edges[-1]:.4g} and above"]


def _mean_weights(combined: Callable[[Tensor], Tensor], base_weights: Callable[[float], Tensor]) -> list[float]:
    """Each term's weight as its rule begins with, schedules averaged over the whole job."""
    base = torch.stack([base_weights(progress) for progress in np.linspace(0, 1, 101)]).mean(0)
    return [round(weight, 9) for weight in combined(base).detach().tolist()]


def _padded(passes: Sequence[NDArray[np.int64]]) -> int:
    """Tokens of some passes, padding among them. passes: the lengths of each one's rows."""
    return sum(len(lengths) * int(lengths.max()) for lengths in passes)


def _norm(gradient: Gradients) -> float:
    return math.sqrt(sum(float(part.norm()) ** 2 for part in gradient))


def _spread(values: Sequence[float]) -> Spread:
    if not all(math.isfinite(value) for value in values):
        return Spread(mean=None, min=None, max=None)
    return Spread(mean=sum(values) / len(values), min=min(values), max=max(values))


# ------------------------------------------------------------------------------------------------------------- warnings


def warn(measured: Sequence[Measured], terms: Sequence[TermReport]) -> list[str]:
    """What looks wrong, the worst first."""
    found = [_not_finite(one) for one in measured]
    found += [_no_rows(one) for one in terms]
    found += [_dead(one, len(many.norms)) for many, one in zip(measured, terms, strict=True)]
    if len(terms) > 1:
        found += [_dominates(one) for one in terms]
    found += [_one_label(one) for one in terms]
    return [sentence for sentence in found if sentence is not None]


def _not_finite(term: Measured) -> str | None:
    if term.broken_rows:
        named = sorted(set(term.broken_rows))
        shown = ", ".join(map(str, named[:MOST_ROWS_NAMED]))
        more = f" and {len(named) - MOST_ROWS_NAMED} more" if len(named) > MOST_ROWS_NAMED else ""
        return f"'{term.id}' is not finite in row {shown}{more} of the dataset: training would stop at such a row."
    bad = [step for step, norm in enumerate(term.norms, 1) if not math.isfinite(norm)]
    return f"the gradient of '{term.id}' is not finite in step {bad[0]}: training would stop there." if bad else None


def _no_rows(term: TermReport) -> str | None:
    if term.loss == "supcon" and term.rows_counted < FEW_ROWS:
        return (
            f"'{term.id}' finds a positive for {term.rows_counted:.0%} of the rows (its anchors): the others share "
            "their label with no row of their step. Raise training.batch_size, or merge rare labels."
        )
    if term.rows_counted == 0:
        return f"no row of these steps counts towards '{term.id}': each label is ignored or has weight 0."
    if set(term.class_shares) == {NO_LABEL}:
        return f"'{term.id}' saw no positives: no row of these steps has a label."
    return None


def _dead(term: TermReport, steps: int) -> str | None:
    if term.rows_counted == 0:
        return None
    if term.weight == 0:
        return f"'{term.id}' is a dead term: its weight is 0 throughout."
    if term.gradient_norm.max == 0:
        return f"'{term.id}' is a dead term: its gradient is 0 in each of the {steps} steps, so it teaches nothing."
    return None


def _dominates(term: TermReport) -> str | None:
    if term.gradient_share is None or term.gradient_share <= DOMINATES:
        return None
    return (
        f"'{term.id}' dominates: {term.gradient_share:.1%} of the gradient is its own. Lower its weight, raise the "
        "others', or let combine 'gradnorm' bring them together."
    )


def _one_label(term: TermReport) -> str | None:
    label, share = next(iter(term.class_shares.items()), ("", 0.0))
    if share <= ONE_LABEL or label == NO_LABEL:
        return None
    return f"{share:.0%} of '{term.id}' comes from rows of '{label}': the other labels hardly count."
