"""Knowledge distillation."""

from typing import ClassVar

from torch import Tensor

from ml.losses.base import Loss, Targets
from ml.losses.states import check_reading, log_states, mean_divergence
from ml.models.outputs import Outputs


class KdLoss(Loss):
    """Learns what another model says of every label.

    Formula: T² Σ_c q_c (log q_c − log p_c), q = softmax(t / T), p = softmax(z / T).
    Symbols: t the teacher's logits, z the model's, T temperature. T² keeps gradients the same size as T grows.
    Shapes: logits (B, H), teacher (B, H) read the same way → (B,).
    Choose it when a larger model is already good at the task.
    Paper: Hinton et al. 2015, arXiv:1503.02531.
    """

    wants: ClassVar[tuple[str, ...]] = ("reading",)

    def __init__(self, *, teacher: str, temperature: float, reading: str) -> None:
        super().__init__()
        check_reading(reading, "kd")
        self.teacher = teacher
        self.temperature = temperature
        self.reading = reading

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        assert targets.teacher is not None, "the spec needs a teacher's logits"
        logits, teacher = outputs.logits, targets.teacher.to(outputs.logits.dtype)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"the teacher '{self.teacher}' has {teacher.shape[-1]} outputs a row, the model {logits.shape[-1]}"
            )
        log_q = log_states(teacher / self.temperature, self.reading)
        log_p = log_states(logits / self.temperature, self.reading)
        losses = self.temperature**2 * mean_divergence(log_q, log_p)
        return losses * self.denominators(targets).to(losses.dtype)
