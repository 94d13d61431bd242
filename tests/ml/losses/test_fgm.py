import pytest
import torch

from ml.losses.base import IGNORED, LossContext, Targets
from ml.losses.fgm import FgmLoss
from ml.losses.objective import Objective
from ml.models.outputs import Outputs
from ml.specs.losses.auxiliary import EntropyMinSpec, FgmSpec
from ml.specs.losses.composition import Composition, Term
from ml.specs.losses.single_label import CrossEntropySpec, GroupDroSpec

CONTEXT = LossContext(labels=["a", "b", "c"], train_counts={"a": 5, "b": 3, "c": 2}, groups=2)


def _objective(main: object) -> Objective:
    fgm, other = FgmSpec(type="fgm", epsilon=0.5), EntropyMinSpec(type="entropy_min")
    return Objective(Composition(terms=[Term(loss=other), Term(loss=fgm), Term(loss=main)]), CONTEXT)  # type: ignore[arg-type]


def _outputs() -> Outputs:
    logits, moved = torch.randn(2, 4, 3, dtype=torch.float64)
    return Outputs(logits, logits, adversarial=Outputs(moved, moved))


def test_is_the_tasks_loss_of_the_moved_rows():
    objective = _objective(CrossEntropySpec(type="cross_entropy", class_weights="balanced"))
    outputs, targets = _outputs(), Targets(torch.tensor([0, 1, 2, IGNORED]))
    assert outputs.adversarial is not None
    fgm, main = objective.losses[1], objective.losses[2]
    assert objective.main is main
    torch.testing.assert_close(fgm.numerators(outputs, targets), main.numerators(outputs.adversarial, targets))
    torch.testing.assert_close(fgm.denominators(targets), main.denominators(targets))
    shares = objective.shares(outputs, targets, objective.denominators(targets))
    at_the_moved = objective.shares(
        Outputs(outputs.adversarial.logits, outputs.embeddings, adversarial=outputs.adversarial),
        targets,
        objective.denominators(targets),
    )
    torch.testing.assert_close(shares[1], at_the_moved[2])


def test_tells_the_loop_what_it_needs():
    objective = _objective(CrossEntropySpec(type="cross_entropy"))
    assert objective.needs == {"adversarial"}
    assert objective.epsilon == 0.5


def test_the_tasks_loss_has_one_owner():
    objective = _objective(CrossEntropySpec(type="cross_entropy", class_weights="balanced"))
    assert list(objective.state_dict()) == ["losses.2.class_weights"]
    assert list(objective.losses[1].children()) == []


def test_a_loss_with_a_state_moves_it_once_a_step():
    objective = _objective(GroupDroSpec(type="group_dro", step_size=1.0))
    outputs, targets = _outputs(), Targets(torch.tensor([0, 1, 2, 0]), groups=torch.tensor([0, 1, 0, 1]))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.losses[1].numerators(outputs, targets)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert objective.main.training
    objective.main.numerators(outputs, targets)
    assert not all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_alone_it_is_refused():
    with pytest.raises(ValueError, match="'fgm' is an auxiliary term: add a task loss"):
        Objective(FgmSpec(type="fgm"), CONTEXT)
    with pytest.raises(ValueError, match="there is none"):
        FgmLoss(epsilon=1.0).denominators(Targets(torch.tensor([0])))
