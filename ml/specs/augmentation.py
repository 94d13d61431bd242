"""How training rows are changed, anew each time they are taken, so that a few rows teach more."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ml.specs.base import OfType, Spec

Operation = Literal["swap", "deletion", "insertion"]


class Mask(Spec):
    """Each token of a text becomes the tokenizer's mask token with some probability; special tokens stay."""

    type: Literal["mask"]
    probability: float = Field(0.1, gt=0, lt=1, description="Of each token.")


class Eda(Spec):
    """One operation on the words of each text, drawn from those named (Wei and Zou 2019, arXiv:1901.11196).

    swap exchanges two words, insertion repeats a word of the text somewhere, both max(1, alpha × words) times; deletion
    leaves each word out with probability alpha. The paper inserts synonyms and replaces words by them: that takes a
    thesaurus, and there is none here.
    """

    type: Literal["eda"]
    alpha: float = Field(0.1, gt=0, lt=1, description="Share of a text's words that change.")
    operations: list[Operation] = Field(
        ["swap", "deletion", "insertion"], min_length=1, max_length=3, description="Each equally often."
    )

    @model_validator(mode="after")
    def _names_each_operation_once(self) -> "Eda":
        if len(set(self.operations)) < len(self.operations):
            raise ValueError("an operation is named twice: name each one once.")
        return self


class Mixup(Spec):
    """The word embeddings of each row are mixed with another row's of its step, and so are their losses.

    loss = λ loss(y_a) + (1 − λ) loss(y_b), λ ~ Beta(alpha, alpha) (Zhang et al. 2018, arXiv:1710.09412; on word
    embeddings: Guo et al. 2019, arXiv:1905.08941).
    """

    type: Literal["mixup"]
    alpha: float = Field(0.2, ge=0.01, le=100, description="Small: one of the two rows prevails; 1: any λ alike.")


Augmentation = Annotated[Mask | Eda | Mixup, Field(discriminator="type"), OfType()]
