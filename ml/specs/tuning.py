"""The tunings: which of a base model's weights train, and what is added to it. The head always trains."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ml.specs.base import Spec, spell_out


class TuningSpec(Spec):
    """What every tuning has."""

    # The default learning rate for encoders up to 512 wide, and for wider ones.
    learning_rates: ClassVar[tuple[float, float]] = (1e-4, 3e-5)


class FullTuning(TuningSpec):
    """Every parameter trains."""

    type: Literal["full"]


class FrozenTuning(TuningSpec):
    """The encoder stays as it is: each text is encoded once, and a linear head trains on the result."""

    learning_rates = (1e-2, 1e-2)

    type: Literal["frozen"]


class TopLayersTuning(TuningSpec):
    """The last layers train; those below and the embeddings stay as they are, without dropout."""

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
    FullTuning | FrozenTuning | TopLayersTuning | LoraTuning | AdapterTuning,
    Field(discriminator="type"),
    BeforeValidator(spell_out),
]

# What families of encoders call some of a layer's linear layers. A base has one of each.
ATTENTION_OUTPUTS = ("attention.output.dense", "attention.out_lin", "attention.attn.o", "attn.Wo")
FEED_FORWARD_OUTPUTS = ("output.dense", "ffn.lin2", "mlp.Wo")
