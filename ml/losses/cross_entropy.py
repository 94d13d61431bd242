"""Cross-entropy with label smoothing and class weights."""

from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Loss, Targets
from ml.models.outputs import Outputs


class CrossEntropyLoss(Loss):
    """The negative log-likelihood of the true label.

    Formula: ((1 − ε) w_y (−log p_y) + ε/C Σ_c w_c (−log p_c)), divided by w_y over the step.
    Symbols: p = softmax(z), y the true class, w class weights (1 without), ε label smoothing, C classes.
    Shapes: logits (B, C), targets (B,) → (B,).
    Choose it when labels are roughly balanced, or weigh it by class when they are not.
    Paper: Bishop 2006, section 4.3.4; smoothing: Szegedy et al. 2016, arXiv:1512.00567.
    """

    class_weights: Tensor | None

    def __init__(self, *, label_smoothing: float, class_weights: Tensor | None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights)

    def numerators(self, outputs: Outputs, targets: Targets) -> Tensor:
        """See the class."""
        weights = None if self.class_weights is None else self.class_weights.to(outputs.logits.dtype)
        return functional.cross_entropy(
            outputs.logits,
            targets.labels,
            weights,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def denominators(self, targets: Targets) -> Tensor:
        """The weight of the row's label, as torch divides (1 without weights)."""
        if self.class_weights is None:
            return super().denominators(targets)
        return self.class_weights[targets.labels.clamp_min(0)].double() * (targets.labels != IGNORED)
