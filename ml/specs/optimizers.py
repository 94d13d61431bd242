"""Optimizers, and schedules of the learning rate: their fields, defaults and limits. How they act: `ml.training`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ml.specs.base import OfType, Spec

# ----------------------------------------------------------------------------------------------------------- optimizers

Beta1 = Annotated[float, Field(ge=0, lt=1, description="Decay of the mean of the gradients.")]
Beta2 = Annotated[float, Field(ge=0, lt=1, description="Decay of the mean of their squares.")]
Epsilon = Annotated[float, Field(gt=0, le=1, description="Added to the divisor.")]
Decoupled = Annotated[float, Field(ge=0, le=1, description="Shrinks the weights directly. Spares biases and norms.")]
InGradient = Annotated[float, Field(ge=0, le=1, description="Added to the gradient (L2). Spares biases and norms.")]


class _Optimizer(Spec):
    """What every optimizer has."""

    # Default learning rates in AdamW's, those that go about as far: where an encoder's own weights train, and else.
    encoder_rate: ClassVar[float] = 1.0
    added_rate: ClassVar[float] = 1.0

    type: str
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Null: by the tuning, the width of the encoder and the optimizer.",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="The learning rate of a layer, in that of the layer above it; embeddings are lowest. 1: all alike.",
    )


class Sgd(_Optimizer):
    """Stochastic gradient descent with momentum."""

    encoder_rate, added_rate = 100.0, 10.0

    type: Literal["sgd"]
    weight_decay: InGradient = 0.0
    momentum: float = Field(0.9, ge=0, lt=1, description="Of the gradient; 0: none.")
    nesterov: bool = Field(False, description="Look ahead along the momentum.")

    @model_validator(mode="after")
    def _looks_along_something(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("'nesterov' needs a 'momentum' greater than 0, and it is 0.")
        return self


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015)."""

    type: Literal["adam"]
    weight_decay: InGradient = 0.0
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-8


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    type: Literal["adamw"]
    weight_decay: Decoupled = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-8


class Adamax(_Optimizer):
    """Adam by the largest gradient in the place of the mean square (Kingma and Ba 2015, section 7.1)."""

    encoder_rate = added_rate = 2.0

    type: Literal["adamax"]
    weight_decay: InGradient = 0.0
    beta1: Beta1 = 0.9
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the largest gradient.")
    epsilon: Epsilon = 1e-8


class Adafactor(_Optimizer):
    """Mean squares by row and column alone, steps in proportion to the weights (Shazeer and Stern 2018)."""

    encoder_rate = added_rate = 10.0

    type: Literal["adafactor"]
    weight_decay: Decoupled = 0.0
    beta2_decay: float = Field(-0.8, ge=-1, le=0, description="At step t the mean of squares decays by 1 − t to this.")
    clip_threshold: float = Field(1.0, ge=1, le=1000, description="Largest root mean square of an update.")
    epsilon: float = Field(1e-3, gt=0, le=1, description="Least size that a weight is taken to have.")


class Lamb(_Optimizer):
    """Adam with steps in proportion to each matrix's norm, for large batches (You et al. 2020)."""

    encoder_rate, added_rate = 20.0, 2.0

    type: Literal["lamb"]
    weight_decay: Decoupled = 0.01
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    epsilon: Epsilon = 1e-6


class Lion(_Optimizer):
    """The sign of a momentum; lower rates and more decay than AdamW (Chen et al. 2023)."""

    encoder_rate = added_rate = 0.2

    type: Literal["lion"]
    weight_decay: Decoupled = 0.05
    beta1: float = Field(0.9, ge=0, lt=1, description="Share of the momentum in a step.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the momentum.")


Optimizer = Annotated[
    Sgd | Adam | AdamW | Adamax | Adafactor | Lamb | Lion, Field(discriminator="type"), OfType("adamw")
]

# ------------------------------------------------------------------------------------------------------------ schedules


class _Schedule(Spec):
    """What every schedule has."""

    type: str
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises from zero.")


class Constant(_Schedule):
    """The full rate after warm-up."""

    type: Literal["constant"]


class Linear(_Schedule):
    """A straight line to zero."""

    type: Literal["linear"]


class Cosine(_Schedule):
    """Half a cosine to zero (Loshchilov and Hutter 2017)."""

    type: Literal["cosine"]


class CosineRestarts(_Schedule):
    """Several such cosines, each from the full rate (Loshchilov and Hutter 2017)."""

    type: Literal["cosine_restarts"]
    cycles: int = Field(2, ge=1, le=1000, description="How often it starts anew.")


class Polynomial(_Schedule):
    """A power of what is left of the steps."""

    type: Literal["polynomial"]
    power: float = Field(2.0, gt=0, le=100, description="1 is linear.")
    end_factor: float = Field(0.0, ge=0, le=1, description="Where it ends, in the full rate.")


class InverseSqrt(_Schedule):
    """The inverse square root of the steps made, 1 at the end of warm-up (Vaswani et al. 2017)."""

    type: Literal["inverse_sqrt"]


class OneCycle(_Schedule):
    """Half a cosine up, half a cosine down; momentum stays (Smith and Topin 2018)."""

    type: Literal["one_cycle"]
    warmup: float = Field(0.3, ge=0, lt=1, description="Share of the steps in which the rate rises.")
    start_factor: float = Field(0.04, gt=0, le=1, description="Where it starts, in the full rate.")
    end_factor: float = Field(4e-6, ge=0, le=1, description="Where it ends, in the full rate.")


Schedule = Annotated[
    Constant | Linear | Cosine | CosineRestarts | Polynomial | InverseSqrt | OneCycle,
    Field(discriminator="type"),
    OfType("linear"),
]
