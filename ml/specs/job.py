"""The job spec: model + loss + training. The body of `POST /v1/jobs` is this class.

It knows what is asked and the limits of each field; what fits a dataset is `ml.resolve`'s to say.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ml.specs.augmentation import Augmentation
from ml.specs.base import Spec, refuse_null_characters
from ml.specs.evaluation import Evaluation
from ml.specs.losses.composition import GRAMMAR, Loss
from ml.specs.optimizers import AdamW, Linear, Optimizer, Schedule
from ml.specs.samplers import Sampler, Shuffle
from ml.specs.tasks import Task
from ml.specs.tuning import FullTuning, Tuning

MAX_PAIRS = 16
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(
        max_length=MAX_PAIRS,
        description=f"Your own notes: up to {MAX_PAIRS} pairs of text, keys up to 64 characters, values up to 512.",
        examples=[{"team": "nlp"}],
    ),
    AfterValidator(refuse_null_characters),
]
Count = Annotated[int, Field(ge=1)]

# What is done with a spec: train, try a few steps, compare several losses (a spec of its own: ml.specs.comparison),
# make a model of a checkpoint of its training, or put a model to a whole dataset (ml.specs.bulk).
JobKind = Literal["training", "dry_run", "comparison", "publish", "prediction_batch", "evaluation"]


class Split(Spec):
    """How rows are divided. A dataset's split column comes first: a part it names is taken from it."""

    validation: float = Field(0.1, ge=0, lt=1, description="Share of the rows for validation.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of the rows for the final test; 0 for none.")
    stratify: bool = Field(True, description="Keep each label's share in every part.")
    group_column: str | None = Field(
        None, description="Rows with the same value in this column stay in one part (then nothing is stratified)."
    )
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Draws the parts. Null: training.seed.")

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave nothing to train on; "
                "together they must be less than 1."
            )
        return self


class EarlyStopping(Spec):
    """Stop when validation no longer improves, and keep the best weights."""

    metric: str | None = Field(None, description="A validation metric. Null: macro_f1; regression: rmse; ordinal: qwk.")
    patience: int = Field(2, ge=1, le=1000, description="Epochs without improvement before stopping.")
    min_delta: float = Field(0.0, ge=0, description="Least change that counts as an improvement.")


class Training(Spec):
    """How to train."""

    epochs: int = Field(3, ge=1, le=1000, description="Times that every training row is seen.")
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Stop after so many optimizer steps.")
    batch_size: int = Field(32, ge=1, le=4096, description="Rows of one optimizer step, however it is cut.")
    sampler: Sampler = Field(Shuffle(type="shuffle"), description="Which rows an epoch takes: an object or its type.")
    augmentation: list[Augmentation] = Field(
        default_factory=list,
        max_length=3,
        description="How training rows are changed each time they are taken: objects or their types, in order.",
    )
    micro_batch_rows: int | None = Field(
        None, ge=1, le=4096, description="Rows of one forward pass. Null: as many as a token budget allows."
    )
    max_length: int = Field(128, ge=4, le=8192, description="Tokens a text is cut at.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Null: as the base model has it.")
    optimizer: Optimizer = Field(AdamW(type="adamw"), description="An object or its type; without a type: adamw.")
    schedule: Schedule = Field(
        Linear(type="linear"), description="Of the learning rate: an object or its type; without a type: linear."
    )
    max_grad_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to this norm; null: never.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Measure and keep a moving average of the weights, in which a step back counts so much as often.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Of the forward pass; auto takes bfloat16 where the device does it well, else float16 on a GPU. "
        "float16 is for GPUs, and scales gradients. Losses: float32.",
    )
    compile: bool = Field(
        False,
        description="Compile training steps by torch.compile, over few lengths. For GPUs; on a CPU rarely worth it.",
    )
    early_stopping: EarlyStopping | None = Field(None, description="Null: all epochs, and the last weights.")
    checkpoint_every_seconds: float = Field(60, ge=0, le=86_400, description="What a crash may cost; 0: every step.")
    seed: int = Field(17, ge=0, le=2**32 - 1, description="Of all that is drawn: the same seed, the same model.")

    @field_validator("augmentation")
    @classmethod
    def _augments_each_way_once(cls, value: list[Augmentation]) -> list[Augmentation]:
        names = [one.type for one in value]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"'augmentation' names {', '.join(repeated)} twice: name each type once.")
        return value


class Setup(Spec):
    """What is trained, on what and how, whatever the loss."""

    name: str = Field("", max_length=200, description="Of the job, and of the model it makes. Only shown.")
    model: str = Field(
        "minilm",
        min_length=1,
        max_length=200,
        description="A base model (GET /v1/base_models), or a model of yours to train further, by its id or an alias: "
        "labels it knows keep their rows of the head, new ones get new rows.",
    )
    dataset: str = Field(min_length=1, max_length=200, description="Id of a dataset.")
    task: Task | None = Field(None, description="Null: found out from the dataset's columns.")
    split: Split = Split()
    tuning: Tuning = Field(
        FullTuning(type="full"), description="Which parameters are trained: an object or its type, e.g. frozen."
    )
    training: Training = Training()
    metadata: Metadata = Field(default_factory=dict)


class JobSpec(Setup):
    """A training job. Only `dataset` is required."""

    loss: Loss | None = Field(None, description=GRAMMAR)
    evaluation: Evaluation = Evaluation()
