import math

import pytest
import torch
from torch import Tensor

from ml.losses.base import IGNORED, LossContext, Targets
from ml.losses.objective import Objective
from ml.losses.supcon import SupConLoss
from ml.models.outputs import Outputs
from ml.specs.losses.auxiliary import SupConSpec
from ml.specs.losses.composition import Composition, Term
from ml.specs.losses.single_label import CrossEntropySpec


def _outputs(vectors: Tensor) -> Outputs:
    return Outputs(torch.zeros(len(vectors), 3, dtype=vectors.dtype), vectors)


def _slow(vectors: Tensor, labels: list[int], temperature: float) -> list[float]:
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in vectors.tolist()]
    known = [i for i, label in enumerate(labels) if label != IGNORED]

    def likeness(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / temperature

    losses = []
    for i, label in enumerate(labels):
        positives = [j for j in known if j != i and labels[j] == label]
        total = sum(math.exp(likeness(i, a)) for a in known if a != i)
        terms = [math.log(math.exp(likeness(i, p)) / total) for p in positives]
        losses.append(-sum(terms) / len(terms) if terms else 0.0)
    return losses


@pytest.mark.parametrize(
    "labels", [[0, 1, 0, 1, 2, 2, 0], [0, 0, 0, 0, 0, 0, 0], [0, 1, IGNORED, 1, 2, IGNORED, 0], [0, 1, 2, 2, 3, 4, 5]]
)
def test_equals_a_slow_loop(labels: list[int]):
    vectors = torch.randn(7, 5, dtype=torch.float64)
    found = SupConLoss(temperature=0.3).numerators(_outputs(vectors), Targets(torch.tensor(labels)))
    torch.testing.assert_close(found, torch.tensor(_slow(vectors, labels, 0.3), dtype=torch.float64))


def test_a_row_without_a_positive_is_no_anchor():
    """Mistake 8 of the catalogue: NaN in the reference code, a diluted mean elsewhere."""
    loss, targets = SupConLoss(temperature=0.1), Targets(torch.tensor([0, 0, 1, IGNORED, IGNORED]))
    assert loss.denominators(targets).tolist() == [1, 1, 0, 0, 0]
    found = loss.numerators(_outputs(torch.randn(5, 4)), targets)
    assert (found[2:] == 0).all()
    assert (found[:2] > 0).all()


@pytest.mark.parametrize("labels", [[0, 1, 2], [IGNORED, IGNORED, IGNORED], [0, IGNORED, IGNORED]])
def test_a_step_without_any_positive_is_zero_and_so_is_its_gradient(labels: list[int]):
    vectors = torch.randn(3, 4, requires_grad=True)
    targets = Targets(torch.tensor(labels))
    found = SupConLoss(temperature=0.1).numerators(_outputs(vectors), targets)
    found.sum().backward()
    assert (found == 0).all()
    assert vectors.grad is not None
    assert (vectors.grad == 0).all()
    assert SupConLoss(temperature=0.1).denominators(targets).sum() == 0


def test_beside_a_tasks_loss_a_step_without_any_positive_adds_nothing():
    terms = [Term(loss=CrossEntropySpec(type="cross_entropy")), Term(loss=SupConSpec(type="supcon"))]
    objective = Objective(Composition(terms=terms), LossContext(labels=["a", "b", "c"]))
    targets = Targets(torch.tensor([0, 1, 2]))
    shares = objective.shares(_outputs(torch.randn(3, 4)), targets, objective.denominators(targets))
    assert shares[1] == 0
    assert shares.isfinite().all()


def test_a_step_that_is_cut_has_fewer_to_compare_with():
    """Mistake 9 of the catalogue: accumulation adds no negatives, so the loss says that it is not additive."""
    vectors, targets = torch.randn(8, 4, dtype=torch.float64), Targets(torch.tensor([0, 1] * 4))
    loss = SupConLoss(temperature=0.1)
    whole = loss.numerators(_outputs(vectors), targets).sum()
    halves = [
        loss.numerators(_outputs(vectors[rows]), targets.take(rows)).sum()
        for rows in (torch.arange(4), torch.arange(4, 8))
    ]
    assert float(whole) > float(sum(halves)) + 0.1
    assert not SupConSpec.is_additive


def test_the_length_of_an_embedding_does_not_count():
    vectors, targets = torch.randn(6, 4, dtype=torch.float64), Targets(torch.tensor([0, 1] * 3))
    loss, lengths = SupConLoss(temperature=0.1), torch.rand(6, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(
        loss.numerators(_outputs(vectors * lengths), targets), loss.numerators(_outputs(vectors), targets)
    )


def test_labels_that_are_distributions_are_refused():
    with pytest.raises(ValueError, match="one label a row"):
        SupConLoss(temperature=0.1).denominators(Targets(torch.rand(3, 2)))
