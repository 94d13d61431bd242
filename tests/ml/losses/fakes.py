"""Made-up outputs and targets for any loss, by how it is read and in which task. It names no loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ml.losses.base import Loss, LossContext, Targets
from ml.losses.objective import Objective
from ml.models.outputs import Outputs
from ml.specs.losses.base import LossSpec, Reading, TaskType
from ml.specs.losses.composition import Composition, Term
from ml.specs.losses.table import LOSS_SPECS, losses_for

ROWS, CLASSES, GROUPS, DIMENSIONS = 12, 4, 3, 5
PAIRS = ("sigmoid_pair", "score_pair")


@dataclass(frozen=True)
class Case:
    """A loss in a task: by itself, or, as an auxiliary term, beside the task's first loss."""

    type: str
    task: TaskType
    is_soft: bool = False

    def __str__(self) -> str:
        return f"{self.type}-{self.task}{'-soft' if self.is_soft else ''}"

    @property
    def spec(self) -> LossSpec:
        return example_of(self.type)

    @property
    def main(self) -> LossSpec:
        """The loss that fixes the reading."""
        return example_of(losses_for(self.task)[0]) if self.spec.auxiliary_for else self.spec

    @property
    def reading(self) -> Reading:
        return self.main.readings[self.task]

    @property
    def classes(self) -> int:
        return 2 if self.reading in PAIRS else CLASSES


def example_of(loss: str) -> LossSpec:
    """A loss with its defaults."""
    return LOSS_SPECS[loss].model_validate(LOSS_SPECS[loss].example())


def all_cases() -> list[Case]:
    """Every loss in every task it is valid for."""
    hard = [Case(loss, task) for loss, spec in LOSS_SPECS.items() for task in spec.tasks()]
    return hard + [replace(case, is_soft=True) for case in hard if case.spec.takes_soft_labels]


def context_of(case: Case) -> LossContext:
    """What is known before such a loss is built."""
    labels = [f"label {i}" for i in range(case.classes)]
    counts = {label: 3 * i + 2 for i, label in enumerate(labels)}
    return LossContext(
        labels=labels, train_counts=counts, groups=GROUPS, reading=case.reading, train_rows=sum(counts.values())
    )


def build(case: Case) -> Loss:
    """The loss, in eval mode: a look at it moves no state. An auxiliary term comes out of its composition."""
    terms = [Term(id="main", loss=case.main), Term(id="aux", loss=case.spec)]
    spec = Composition(terms=terms) if case.spec.auxiliary_for else case.spec
    losses = Objective(spec, context_of(case)).eval().losses
    return losses[len(losses) - 1]  # type: ignore[return-value]


def width_of(case: Case) -> int:
    """H, the outputs a row."""
    quantiles: Sequence[float] = getattr(case.spec, "quantiles", ())
    one = dict.fromkeys((*PAIRS, "value", "log_rate", "rank"), 1)
    wide = {"normal": 2, "quantiles": len(quantiles), "cumulative": CLASSES - 1, "conditional": CLASSES - 1}
    return (one | wide).get(case.reading, case.classes)


def make_logits(case: Case, rows: int, seed: int) -> Tensor:
    """(rows, H) float64."""
    logits = torch.randn(rows, width_of(case), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # P(y > k) falls with k, as every head with that reading that can promise it does.
    return logits.sort(-1, descending=True).values if case.reading == "cumulative" else logits


def make_outputs(case: Case, rows: int = ROWS, seed: int = 0) -> Outputs:
    """All that any loss may need, float64."""
    generator = torch.Generator().manual_seed(seed + 100)

    def one(further: int) -> Outputs:
        vectors = torch.randn(rows, DIMENSIONS, dtype=torch.float64, generator=generator)
        return Outputs(make_logits(case, rows, seed + further), vectors)

    return replace(one(0), second=one(1), adversarial=one(2))


def make_targets(case: Case, rows: int = ROWS, seed: int = 0) -> Targets:
    """Labels of the task's shape, each class among them, with groups and a teacher."""
    generator = torch.Generator().manual_seed(seed + 200)
    if case.task == "regression":
        labels = torch.randn(rows, generator=generator)
        labels = labels.abs().round() if case.reading == "log_rate" else labels
    elif case.task == "multi_label":
        labels = (torch.rand(rows, CLASSES, generator=generator) > 0.6).float()
    elif case.is_soft:
        labels = torch.rand(rows, case.classes, generator=generator).softmax(-1)
    else:
        labels = torch.arange(rows)[torch.randperm(rows, generator=generator)] % case.classes
    groups = torch.arange(rows) % GROUPS
    teacher = torch.randn(rows, width_of(case), generator=generator)
    return Targets(labels, groups, teacher)


def change_outputs(outputs: Outputs, change: Any) -> Outputs:
    """Each tensor of the outputs and of their further passes, changed."""
    return Outputs(
        change(outputs.logits),
        change(outputs.embeddings),
        None if outputs.second is None else change_outputs(outputs.second, change),
        None if outputs.adversarial is None else change_outputs(outputs.adversarial, change),
    )


def leaves_of(outputs: Outputs) -> list[Tensor]:
    """Every tensor of the outputs."""
    further = [one for one in (outputs.second, outputs.adversarial) if one is not None]
    return [outputs.logits, outputs.embeddings, *(leaf for one in further for leaf in leaves_of(one))]


def requiring_grad(outputs: Outputs, dtype: torch.dtype = torch.float64) -> Outputs:
    """The same numbers as leaves of a graph."""
    return change_outputs(outputs, lambda tensor: tensor.detach().to(dtype, copy=True).requires_grad_())
