"""What a job will cost, before it runs: tokens, steps, arithmetic, memory, time. Rough, and said to be."""

from pydantic import BaseModel, Field

from ml.data.batches import steps_per_epoch
from ml.memory import MICRO_BATCH_TOKENS, losses_of, row_bytes, weight_bytes
from ml.resolve import Resolved
from ml.specs.errors import quoted, refuse
from ml.specs.facts import BaseFacts, DatasetFacts

# English texts have about 4.5 characters a token with a vocabulary of their own; other scripts have fewer.
CHARACTERS_PER_TOKEN = 4.5
SPECIAL_TOKENS = 2

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
        memory_bytes=weight_bytes(resolved, base) + _rows_at_once(resolved) * row_bytes(resolved, base),
        seconds=None if tokens_per_second is None or is_frozen else tokens * steps / per_epoch / tokens_per_second,
    )


def check_memory(resolved: Resolved, base: BaseFacts, limit: int) -> list[str]:
    """A step is cut into passes that fit into a trainer's memory: one row must, and all where a loss couples them.

    limit: a trainer's address space in bytes, 0 where there is none or none is known: then much memory is warned of.
    Raises SpecError above the limit.
    """
    training, coupled = resolved.spec.training, _coupled(resolved)
    fixed, row = weight_bytes(resolved, base) + PROGRAM_BYTES, row_bytes(resolved, base)
    if limit and fixed + row > limit:
        raise refuse(
            "/model",
            f"to train '{base.name}' with tuning '{resolved.spec.tuning.type}' takes up to {_gigabytes(fixed + row)}, "
            f"for its weights and a row of {training.max_length} tokens; the limit is {_gigabytes(limit)}. Use a "
            "smaller base model or a shorter max_length, or give trainers more memory (MINIMAND_TRAINER_MEMORY_BYTES).",
            "too_much_memory",
        )
    if not coupled or resolved.spec.tuning.type == "frozen":
        return []
    rows = _rows_at_once(resolved)
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
    return [loss.type for loss in losses_of(resolved) if not loss.is_additive]


def _rows_at_once(resolved: Resolved) -> int:
    """Rows of one forward pass: a micro-batch, or the whole step where it cannot be cut."""
    training = resolved.spec.training
    micro = max(1, MICRO_BATCH_TOKENS // training.max_length)
    if resolved.spec.tuning.type == "frozen":  # the encoder reads every row once, whatever a step is
        return min(micro, len(resolved.parts))
    whole = min(training.batch_size, resolved.train_rows)
    return whole if _coupled(resolved) else min(whole, training.micro_batch_rows or micro)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
