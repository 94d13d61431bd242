"""The tunings: which of a base model's weights train, and what is added to it. The head always trains."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ml.specs.base import OfType, Spec


class TuningSpec(Spec):
    """What every tuning has."""

    # AdamW's default learning rate for encoders up to 512 wide, and for wider ones.
    learning_rates: ClassVar[tuple[float, float]] = (1e-4, 3e-5)
    # Whether weights that were trained before are trained further, and whether any that trains lies in a layer.
    trains_encoder: ClassVar[bool] = False
    trains_layers: ClassVar[bool] = True


class FullTuning(TuningSpec):
    """Every parameter trains, but for what is named in `freeze`."""

    trains_encoder = True

    type: Literal["full"]
    freeze: list[str] = Field(
        default_factory=list,
        description="Parts of the base that stay as they are, without dropout: `embeddings`, `layer.0`, …",
        examples=[["embeddings", "layer.0"]],
    )


class FrozenTuning(TuningSpec):
    """The encoder stays as it is: each text is encoded once, and a linear head trains on the result."""

    learning_rates = (1e-2, 1e-2)
    trains_layers = False

    type: Literal["frozen"]


class TopLayersTuning(TuningSpec):
    """The last layers train; those below and the embeddings stay as they are, without dropout."""

    trains_encoder = True

    type: Literal["top_layers"]
    layers: int = Field(2, ge=1, description="How many of the encoder's layers train, counted from the top.")


LayerNames = Annotated[list[str], Field(min_length=1)]
TargetModules = Annotated[
    LayerNames | None,
    Field(description="Linear layers by their names or ends of them, e.g. query. Null: all of the encoder's layers."),
]


class LoraTuning(TuningSpec):
    """W + α/r · B·A: a matrix of low rank beside each frozen one, added to it at the end (Hu et al. 2022)."""

    learning_rates = (1e-3, 5e-4)

    type: Literal["lora"]
    rank: int = Field(8, ge=1, le=1024, description="r: A is r × in, B is out × r.")
    alpha: float = Field(16.0, gt=0, le=4096, description="α.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of what A reads.")
    target_modules: TargetModules = None


class Ia3Tuning(TuningSpec):
    """A learned factor for each key, value and inner feed-forward activation (Liu et al. 2022)."""

    learning_rates = (1e-2, 5e-3)

    type: Literal["ia3"]
    target_modules: LayerNames | None = Field(
        None, description="Linear layers whose outputs are scaled. Null: those that make keys and values."
    )
    feedforward_modules: LayerNames | None = Field(
        None, description="Linear layers whose inputs are scaled. Null: the last of the feed-forward part."
    )


class AdaLoraTuning(TuningSpec):
    """LoRA as a singular value decomposition; matrices that use their rank less well lose it (Zhang et al. 2023)."""

    learning_rates = (2e-3, 1e-3)

    type: Literal["adalora"]
    rank: int = Field(8, ge=1, le=1024, description="The mean rank at the end.")
    initial_rank: int = Field(12, ge=2, le=1024, description="Of each matrix at the beginning; more than `rank`.")
    alpha: float = Field(16.0, gt=0, le=4096, description="The update is scaled by alpha / initial_rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of what the matrices read.")
    target_modules: TargetModules = None
    initial: float = Field(0.1, ge=0, lt=1, description="Share of the steps before ranks fall.")
    final: float = Field(0.3, ge=0, lt=1, description="Share of the steps after they are settled.")
    interval: int = Field(10, ge=1, le=100_000, description="Steps from one allocation to the next.")
    beta1: float = Field(0.85, gt=0, lt=1, description="Smooths a weight's sensitivity.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Smooths its uncertainty.")
    orthogonality: float = Field(0.5, ge=0, le=100, description="Weight of the penalty that keeps P and Q orthogonal.")

    @model_validator(mode="after")
    def _has_ranks_to_take_and_steps_to_do_it_in(self) -> "AdaLoraTuning":
        if self.initial_rank <= self.rank:
            raise ValueError(
                f"initial_rank is {self.initial_rank}, and must be more than rank, which is {self.rank}: "
                "the difference is what is taken from matrices that need it less."
            )
        if self.initial + self.final >= 1:
            raise ValueError(
                f"initial {self.initial} and final {self.final} leave no steps in which ranks fall; "
                "together they must be less than 1."
            )
        return self


class PromptTuning(TuningSpec):
    """Trained vectors stand among each text's word embeddings (Lester et al. 2021)."""

    learning_rates = (1e-2, 1e-2)
    trains_layers = False

    type: Literal["prompt"]
    virtual_tokens: int = Field(20, ge=1, le=512, description="How many vectors. They count as tokens of each text.")


class PrefixTuning(TuningSpec):
    """Trained keys and values stand before a text's own in every layer's attention (Li and Liang 2021)."""

    learning_rates = (1e-2, 1e-2)
    trains_layers = False

    type: Literal["prefix"]
    virtual_tokens: int = Field(20, ge=1, le=512, description="How many in each layer. They count as tokens too.")


class AdapterTuning(TuningSpec):
    """A bottleneck after attention and one after the feed-forward part of each layer; norms train too.

    Houlsby et al. 2019. It begins as almost the identity.
    """

    learning_rates = (1e-3, 3e-4)

    type: Literal["adapter"]
    size: int = Field(64, ge=1, le=4096, description="Width of the bottleneck.")
    target_modules: LayerNames | None = Field(
        None, description="Linear layers that a bottleneck comes after. Null: the last of attention and feed-forward."
    )


Tuning = Annotated[
    FullTuning
    | FrozenTuning
    | TopLayersTuning
    | LoraTuning
    | AdaLoraTuning
    | Ia3Tuning
    | AdapterTuning
    | PromptTuning
    | PrefixTuning,
    Field(discriminator="type"),
    OfType(),
]

# What families of encoders call some of a layer's linear layers. A base has one of each.
KEYS = ("attention.self.key", "attention.k_lin", "attention.attn.k", "attention.self.key_proj")
VALUES = ("attention.self.value", "attention.v_lin", "attention.attn.v", "attention.self.value_proj")
ATTENTION_OUTPUTS = ("attention.output.dense", "attention.out_lin", "attention.attn.o", "attn.Wo")
FEED_FORWARD_OUTPUTS = ("output.dense", "ffn.lin2", "mlp.Wo")

# The encoders that take past keys and values beside a text, by `model_type`.
PREFIXABLE = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")
