"""What can be wrong with an augmentation for this tuning, base model and loss. Torch-free."""

from typing import Any

from ml.specs.errors import refuse
from ml.specs.facts import BaseFacts
from ml.specs.job import JobSpec
from ml.specs.losses.base import LossSpec
from ml.specs.losses.composition import terms_of


def check_augmentation(spec: JobSpec, loss: Any, base: BaseFacts) -> None:
    """Check `training.augmentation`. Raises SpecError."""
    asked = {one.type: f"/training/augmentation/{place}" for place, one in enumerate(spec.training.augmentation)}
    if asked and spec.tuning.type == "frozen":
        raise refuse(
            "/training/augmentation",
            "tuning 'frozen' encodes each text once, as it stands, so no epoch would see it changed. Leave "
            "'augmentation' out, or use another tuning.",
            "augmentation_does_not_fit",
        )
    if asked and spec.training.compile:
        raise refuse(
            "/training/compile",
            "an augmented row has a length of its own in every epoch, and compiled code is made for few lengths. Leave "
            "'compile' out, or 'augmentation'.",
            "augmentation_does_not_fit",
        )
    if "mask" in asked and base.mask_id is None:
        raise refuse(
            asked["mask"],
            f"the tokenizer of base model '{base.name}' has no mask token. Use 'eda' or 'mixup', or another base.",
            "no_mask_token",
        )
    if "mixup" in asked:
        for term in terms_of(loss):
            if (why := _why_unmixed(term.loss)) is not None:
                raise refuse(
                    asked["mixup"],
                    f"'mixup' trains rows that lie between two others, and '{term.loss.type}' {why}. Leave out one of "
                    "the two.",
                    "augmentation_does_not_fit",
                )


def _why_unmixed(loss: LossSpec) -> str | None:
    """Why a loss can make nothing of a row that is a mixture of two; None where it can."""
    if not loss.is_additive:
        return "compares the rows of a step by the one label or group of each"
    if "adversarial" in loss.needs:
        return "moves the word embeddings as well, along the gradient of one row's loss"
    if "teacher" in loss.needs:
        return "has its teacher's answers to the rows as they are"
    if loss.head == "cosine":
        return "keeps a margin around the vector of a row's one label"
    if loss.type == "entropy_min":
        return "wants every answer to be sure, where a mixture's is not"
    return None
