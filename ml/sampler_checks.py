"""What can be wrong with a sampler for this task and these labels. Torch-free."""

from collections.abc import Mapping
from typing import Any

from ml.specs.errors import refuse
from ml.specs.job import JobSpec
from ml.specs.losses.base import TaskType
from ml.specs.losses.composition import terms_of
from ml.specs.samplers import MPerClass


def check_sampler(spec: JobSpec, loss: Any, task: TaskType, train_counts: Mapping[str, int], kind: str) -> list[str]:
    """Check `training.sampler`. Returns warnings; raises SpecError."""
    sampler = spec.training.sampler
    if sampler.type == "shuffle":
        return []
    if task not in ("text_classification", "ordinal") or kind == "distributions":
        held = "distributions over labels" if kind == "distributions" else f"what task '{task}' has"
        raise refuse(
            "/training/sampler",
            f"'{sampler.type}' draws rows by their label and needs one label a row, but the cells hold {held}. Use "
            "'shuffle'.",
            "sampler_does_not_fit",
        )
    if isinstance(sampler, MPerClass):
        _check_m(sampler.m, spec.training.batch_size, sum(1 for rows in train_counts.values() if rows))
    return [
        f"{named} corrects imbalance, and '{sampler.type}' draws every label equally often: rare labels count twice "
        "over. Use one."
        for term in terms_of(loss)
        if (named := _correction(term.loss)) is not None
    ]


def _check_m(m: int, batch_size: int, labels: int) -> None:
    if batch_size % m or batch_size == m:
        raise refuse(
            "/training/sampler/m",
            f"'m' is {m}, and training.batch_size {batch_size} must be a multiple of it, at least {2 * m}: a step "
            f"takes m rows of batch_size / m labels. {_fix(m, batch_size, labels)}",
        )
    if batch_size // m > labels:
        raise refuse(
            "/training/sampler/m",
            f"'m' is {m}, so a step of {batch_size} rows takes {batch_size // m} labels, and {labels} have training "
            f"rows. {_fix(m, batch_size, labels)}",
        )


def _fix(m: int, batch_size: int, labels: int) -> str:
    """The nearest settings that would do."""
    fitting = [batch_size // n for n in range(2, min(labels, batch_size // 2) + 1) if batch_size % n == 0]
    other = f"training.batch_size to {max(2, min(labels, batch_size // m)) * m}"
    return f"Set m to {min(fitting, key=lambda size: abs(size - m))}, or {other}." if fitting else f"Set {other}."


def _correction(loss: Any) -> str | None:
    """How a loss makes up for labels that are rare, if it does."""
    if getattr(loss, "class_weights", None) is not None:
        return "class_weights"
    return loss.type if loss.type in ("logit_adjusted", "ldam") else None
