"""What a job will cost, before it runs: tokens, steps, arithmetic, memory. Rough, and said to be."""

from pydantic import BaseModel, Field

from ml.data.batches import steps_per_epoch
from ml.resolve import Resolved
from ml.specs.facts import BaseFacts, DatasetFacts

# English texts have about 4.5 characters a token with a vocabulary of their own; other scripts have fewer.
CHARACTERS_PER_TOKEN = 4.5
SPECIAL_TOKENS = 2


class Estimate(BaseModel):
    """Rough figures: texts are counted in characters, not tokens."""

    train_rows: int
    tokens_per_epoch: int = Field(description="Of the training part, each text cut at max_length.")
    steps: int
    flops: float = Field(description="6 × parameters outside the embeddings × tokens, and attention.")
    memory_bytes: int = Field(description="Weights, gradients, optimizer and one micro-batch's activations.")


def estimate(resolved: Resolved, facts: DatasetFacts, base: BaseFacts) -> Estimate:
    """Work out what a resolved spec asks for."""
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
    trained = base.hidden_size * 64 if is_frozen else base.parameters
    rows = training.micro_batch_rows or min(training.batch_size, max(1, 8192 // training.max_length))
    # Weights once; of what trains also the gradient and two moments. About 34 numbers a token and layer are kept.
    activations = 34 * rows * training.max_length * base.hidden_size * base.layers * (1 if is_frozen else 2)
    return Estimate(
        train_rows=resolved.train_rows,
        tokens_per_epoch=tokens,
        steps=steps,
        flops=float(per_token * tokens * passes),
        memory_bytes=int(4 * base.parameters + 12 * trained + activations),
    )
