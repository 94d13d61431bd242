"""Which training rows an epoch takes, and which of them meet in a step."""

from typing import Annotated, Literal

from pydantic import Field

from ml.specs.base import OfType, Spec


class Shuffle(Spec):
    """Every row once an epoch, in random order."""

    type: Literal["shuffle"]


class ClassBalanced(Spec):
    """Every label equally often: an epoch repeats rows of rare labels and leaves out rows of common ones."""

    type: Literal["class_balanced"]


class MPerClass(Spec):
    """m rows of each of batch_size / m labels in every step, for losses that compare rows of a label."""

    type: Literal["m_per_class"]
    m: int = Field(4, ge=2, le=2048, description="Rows of a label in a step; it must divide batch_size.")


Sampler = Annotated[Shuffle | ClassBalanced | MPerClass, Field(discriminator="type"), OfType()]
