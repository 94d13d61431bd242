"""What a job will cost, before it runs: tokens, steps, arithmetic, memory, time. Rough, and said to be."""

from pydantic import BaseModel, Field

from ml.data.batches import steps_per_epoch
from ml.resolve import Resolved
from ml.specs.errors import quoted, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import terms_of

# English texts have about 4.5 characters a token with a vocabulary of their own; other scripts have fewer.
CHARACTERS_PER_TOKEN = 4.5
SPECIAL_TOKENS = 2
# Of one forward pass on a CPU, as ml.training.machine has it.
MICRO_BATCH_TOKENS = 8192

# What a trainer's address space holds before the first row: torch and its libraries (measured: 2.6 GB, of which 0.5
# are in memory).
PROGRAM_BYTES = 2_600_000_000
# A step that needs more at once, and cannot be cut, is warned of where no limit is known.
MUCH_MEMORY_BYTES = 8_000_000_000


class Estimate(BaseModel):
    """Rough figures: texts are counted in characters, not tokens."""

    train_rows: int
    tokens_per_epoch: int = Field(description="Of the training part, each text cut at max_length.")
    steps: int
    flops: float = Field(description="6 × parameters outside the embeddings × tokens, and attention.")
    memory_bytes: int = Field(
        description="Weights, gradients, optimizer, and what one forward pass keeps at max_length: of a micro-batch, "
        "or of the whole step where a loss couples its rows. The program itself takes 0.5 GB more."
    )
    seconds: float | None = Field(
        description="Rough: the steps alone, as fast as the last trainings of this base were here. Null where none has "
        "run yet, and for a frozen encoder; a dry run measures it."
    )


def estimate(resolved: Resolved, facts: DatasetFacts, base: BaseFacts, *, tokens_per_second: float | None) -> Estimate:
    """Work out what a resolved spec asks for. tokens_per_second: of earlier trainings like it, None without any."""
    training = resolved.spec.training
    mean_tokens = facts.text_characters / max(1, facts.rows) / CHARACTERS_PER_TOKEN + SPECIAL_TOKENS
    length = min(float(training.max_length), mean_tokens)
    tokens = round(resolved.train_rows * length)
    per_epoch = steps_per_epoch(resolved.train_rows, training.batch_size)
    steps = min(per_epoch * training.epochs, training.max_steps or per_epoch * training.epochs)
    is_frozen = resolved.spec.tuning.type == "frozen"
    body = base.parameters - base.vocabulary * base.hidden_size
    per_token = 6 * body + 12 * base.layers * base.hidden_size * length
    passes = 1 / 3 if is_frozen else steps / per_epoch  # one forward pass alone, or so many epochs of three
    return Estimate(
        train_rows=resolved.train_rows,
        tokens_per_epoch=tokens,
        steps=steps,
        flops=float(per_token * tokens * passes),
        memory_bytes=_weight_bytes(resolved, base) + _rows_at_once(resolved) * _row_bytes(resolved, base),
        seconds=None if tokens_per_second is None or is_frozen else tokens * steps / per_epoch / tokens_per_second,
    )


def check_memory(resolved: Resolved, base: BaseFacts, limit: int) -> list[str]:
    """A loss that couples the rows of a step keeps it from being cut, so all of it must fit into a trainer at once.

    limit: a trainer's address space in bytes, 0 where there is none or none is known: then much memory is warned of.
    Raises SpecError above the limit.
    """
    coupled = _coupled(resolved)
    if not coupled or resolved.spec.tuning.type == "frozen":
        return []
    training, rows = resolved.spec.training, _rows_at_once(resolved)
    fixed, row = _weight_bytes(resolved, base) + PROGRAM_BYTES, _row_bytes(resolved, base)
    needed = (
        f"{quoted(coupled)} couples the {rows} rows of a step, so they cannot be cut, and at max_length "
        f"{training.max_length} they need up to"
    )
    if limit and fixed + rows * row > limit:
        fitting = (limit - fixed) // row
        lower = f"Lower batch_size to {fitting}, or shorten max_length" if fitting > 1 else "Shorten max_length"
        raise refuse(
            "/training/batch_size",
            f"{needed} {_gigabytes(fixed + rows * row)} at once; the limit is {_gigabytes(limit)}. {lower}.",
            "too_much_memory",
        )
    if not limit and rows * row > MUCH_MEMORY_BYTES:
        return [
            f"{needed} {_gigabytes(rows * row)} at once, besides weights and optimizer. Where the worker has less, "
            "lower batch_size, or shorten max_length."
        ]
    return []


def _coupled(resolved: Resolved) -> list[str]:
    """The losses that want all rows of a step in one forward pass."""
    return [loss.type for loss in _losses(resolved) if not loss.is_additive]


def _losses(resolved: Resolved) -> list[LossSpec]:
    assert resolved.spec.loss is not None, "a resolved spec has a loss"
    return [term.loss for term in terms_of(resolved.spec.loss)]


def _rows_at_once(resolved: Resolved) -> int:
    """Rows of one forward pass: a micro-batch, or the whole step where it cannot be cut."""
    training = resolved.spec.training
    micro = max(1, MICRO_BATCH_TOKENS // training.max_length)
    if resolved.spec.tuning.type == "frozen":  # the encoder reads every row once, whatever a step is
        return min(micro, len(resolved.parts))
    whole = min(training.batch_size, resolved.train_rows)
    return whole if _coupled(resolved) else min(whole, training.micro_batch_rows or micro)


def _row_bytes(resolved: Resolved, base: BaseFacts) -> int:
    """What a row of max_length tokens keeps for its backward pass, in every forward pass that its terms ask for.

    A token keeps in each layer 24 float32 of the width, and 3 for each head and token it attends to (measured on
    encoders of 256 to 768 wide at 64 to 512 tokens, in float32 and bfloat16: within 20%; less without dropout).
    """
    length = resolved.spec.training.max_length
    needs = {need for loss in _losses(resolved) for need in loss.needs}
    layers = base.layers * (1 + len(needs & {"second_forward", "adversarial"}))
    if resolved.spec.tuning.type == "frozen":
        layers = 1  # a layer is forgotten when the next has read it
    return 4 * length * layers * (24 * base.hidden_size + 3 * base.heads * length)


def _weight_bytes(resolved: Resolved, base: BaseFacts) -> int:
    """Weights once; of what trains also the gradient and two moments."""
    trained = base.hidden_size * 64 if resolved.spec.tuning.type == "frozen" else base.parameters
    return 4 * base.parameters + 12 * trained


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
