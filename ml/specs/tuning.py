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


Tuning = Annotated[
    FullTuning | FrozenTuning | TopLayersTuning,
    Field(discriminator="type"),
    BeforeValidator(spell_out),
]
