"""What training asks of memory, by arithmetic. Torch-free: a job is judged by it before it runs."""

from ml.resolve import Resolved
from ml.specs.facts import BaseFacts
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import terms_of
from ml.specs.tuning import FullTuning, TopLayersTuning

# Padded tokens of one forward pass on a CPU. More gain nothing, and their activations outgrow what malloc keeps: each
# is mapped and cleared anew. MiniLM, milliseconds of processor time a row, 8192 against 2048: ag_news 29.5 and 27.4,
# texts of 150 tokens 108 and 85, of 400 tokens 386 and 220.
MICRO_BATCH_TOKENS = 2048


def weight_bytes(resolved: Resolved, base: BaseFacts) -> int:
    """Weights once; of what trains also the gradient and two moments."""
    tuning = resolved.spec.tuning
    if isinstance(tuning, FullTuning):
        trained = base.parameters
    elif isinstance(tuning, TopLayersTuning):
        trained = base.parameters * tuning.layers // base.layers
    else:
        trained = base.parameters // 20  # a head, and factors or vectors: 0.1 to 4% of MiniLM
    return 4 * base.parameters + 12 * trained


def row_bytes(resolved: Resolved, base: BaseFacts) -> int:
    """What a row of max_length tokens keeps for its backward pass, in every forward pass that its terms ask for.

    A token keeps in each layer 24 float32 of the width, and 3 for each head and token it attends to (measured on
    encoders of 256 to 768 wide at 64 to 512 tokens, in float32 and bfloat16: within 20%; less without dropout).
    """
    length = resolved.spec.training.max_length
    needs = {need for loss in losses_of(resolved) for need in loss.needs}
    layers = base.layers * (1 + len(needs & {"second_forward", "adversarial"}))
    if resolved.spec.tuning.type == "frozen":
        layers = 1  # a layer is forgotten when the next has read it
    return 4 * length * layers * (24 * base.hidden_size + 3 * base.heads * length)


def tokens_that_fit(resolved: Resolved, base: BaseFacts, spare_bytes: int) -> int:
    """Padded tokens of a forward pass for which memory is left, besides the weights and what trains them; at least 1.

    A fifth stays free: the arithmetic is rough. A row is never cut: with a budget below its length it goes alone.
    """
    left = 0.8 * spare_bytes - weight_bytes(resolved, base)
    return max(1, int(left * resolved.spec.training.max_length / row_bytes(resolved, base)))


def losses_of(resolved: Resolved) -> list[LossSpec]:
    """The loss of each term."""
    assert resolved.spec.loss is not None, "a resolved spec has a loss"
    return [term.loss for term in terms_of(resolved.spec.loss)]
