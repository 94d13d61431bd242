"""Fast gradient method."""

from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.models.outputs import Outputs


class FgmLoss(Loss):
    """The task's loss once more, on word embeddings that the loop moved a step against it.

    Formula: L(x + r, y), r = ε g / ‖g‖₂, g = ∇_x L(x, y), the norm over all tokens of a row.
    Symbols: L the task's loss, x a row's word embeddings, ε the norm of the move, which the loop makes.
    Shapes: those of the task's loss, with logits (B, H) of the moved row → (B,).
    Choose it when answers should survive small changes of wording, and two more passes are affordable.
    Paper: Miyato et al. 2017, arXiv:1605.07725.
    """

    main: Loss | None

    def __init__(self, *, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.main = None

    def stand_beside(self, main: Loss) -> None:
        """Take the task's loss, without becoming a second owner of its state."""
        object.__setattr__(self, "main", main)

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        assert outputs.adversarial is not None, "the spec needs an adversarial pass"
        was_training = self._main.training
        self._main.eval()  # a loss with a state of its own, such as group_dro, moves it once a step, not twice
        try:
            return self._main.numerators(outputs.adversarial.in_full_precision(), targets)
        finally:
            self._main.train(was_training)

    def denominators(self, targets: Targets) -> Tensor:
        """Those of the task's loss."""
        return self._main.denominators(targets)

    @property
    def _main(self) -> Loss:
        if self.main is None:
            raise ValueError("'fgm' stands beside a task's loss, and there is none")
        return self.main
