"""What can be wrong with a loss before it runs: for this task, these labels, these rows. Torch-free.

Each refusal says where, what came, what is allowed, why, and how to mend it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml.specs.errors import did_you_mean, quoted, refuse
from ml.specs.facts import BaseFacts, DatasetFacts
from ml.specs.job import JobSpec
from ml.specs.losses.auxiliary import SIGMOID_READINGS, SOFTMAX_READINGS
from ml.specs.losses.base import LossSpec, TaskType
from ml.specs.losses.composition import Composition, terms_of
from ml.specs.losses.table import losses_for

PER_LABEL = ("class_weights", "alpha", "pos_weight")


def check_loss(
    loss: Any,
    task: TaskType,
    labels: Sequence[str],
    train_counts: Mapping[str, int],
    *,
    spec: JobSpec,
    facts: DatasetFacts,
    base: BaseFacts,
    kind: str,
) -> list[str]:
    """Check every term, and the terms together. Returns warnings; raises SpecError."""
    pointers = [f"/loss/terms/{i}/loss" for i, _ in enumerate(terms_of(loss))]
    if not isinstance(loss, Composition):
        pointers = ["/loss"]
    warnings = (
        [f"{quoted(empty)} has no training rows: the model cannot learn it."]
        if (empty := [label for label, rows in train_counts.items() if rows == 0])
        else []
    )
    for pointer, term in zip(pointers, terms_of(loss), strict=True):
        _check_task(pointer, term.loss, task, labels)
        _check_cells(pointer, term.loss, kind)
        for name in PER_LABEL:
            _check_label_weights(f"{pointer}/{name}", name, getattr(term.loss, name, None), train_counts)
        warnings += _check_alpha(term.loss, labels)
        _check_needs(pointer, term.loss, spec, facts, base)
        _check_labels_needed(pointer, term.loss, kind)
        warnings += _check_coupling(term.loss, spec, train_counts)
        warnings += _check_imbalance(pointer, term.loss, train_counts, spec)
    warnings += _check_together(loss, pointers, task)
    return warnings


def _check_task(pointer: str, loss: LossSpec, task: TaskType, labels: Sequence[str]) -> None:
    if task in loss.tasks():
        if loss.readings.get(task) in ("sigmoid_pair", "score_pair") and len(labels) != 2:
            raise refuse(
                f"{pointer}/type",
                f"'{loss.type}' puts two labels on one logit, but there are {len(labels)} labels. Use "
                f"{_some(task, {loss.type})}, or task multi_label where a text may have several.",
                "loss_does_not_fit",
            )
        return
    wants = {
        "regression": "numbers",
        "ordinal": "ordered labels",
        "multi_label": "lists of labels",
        "text_classification": "one label a row",
    }
    has = f"{len(labels)} class labels" if labels else "numbers"
    homes = " or ".join(f"'{name}'" for name in loss.tasks())
    raise refuse(
        f"{pointer}/type",
        f"'{loss.type}' needs {wants[loss.tasks()[0]]}, but task '{task}' has {has}. Use {_some(task, set())}, or set "
        f"task to {homes}.",
        "loss_does_not_fit",
    )


def _check_cells(pointer: str, loss: LossSpec, kind: str) -> None:
    if kind == "distributions" and not loss.takes_soft_labels and not loss.auxiliary_for:
        raise refuse(
            f"{pointer}/type",
            f"'{loss.type}' needs one label a row, but the cells hold distributions over labels. Use "
            "soft_cross_entropy or kl.",
            "loss_does_not_fit",
        )


def _check_label_weights(pointer: str, name: str, weights: Any, train_counts: Mapping[str, int]) -> None:
    if weights is None or isinstance(weights, float):
        return
    labels = list(train_counts)
    if not isinstance(weights, dict):
        if empty := [label for label, rows in train_counts.items() if rows == 0]:
            raise refuse(
                pointer,
                f"label {quoted(empty)} has 0 training rows; {name} by frequency would divide by zero. Add rows of "
                "it, take smaller shares for validation and test, or give a weight for every label.",
                "label_without_rows",
            )
        return
    missing = [label for label in labels if label not in weights]
    unknown = [label for label in weights if label not in labels]
    if missing or unknown:
        said = []
        if missing:
            said.append(f"lacks {quoted(missing)}")
        if unknown:
            said.append(f"has unknown {quoted(unknown)}")
        hint = did_you_mean(unknown[0], missing or labels) if unknown else ""
        raise refuse(pointer, f"{name} {' and '.join(said)}; labels are {', '.join(labels)}.{hint}", "unknown_label")


def _check_alpha(loss: LossSpec, labels: Sequence[str]) -> list[str]:
    alpha = getattr(loss, "alpha", None)
    if isinstance(alpha, dict) and len(set(alpha.values())) == 1 and set(alpha) == set(labels):
        return ["alpha is the same for every label: it only rescales the learning rate."]
    return []


def _check_needs(pointer: str, loss: LossSpec, spec: JobSpec, facts: DatasetFacts, base: BaseFacts) -> None:
    if "groups" in loss.needs and facts.columns.group is None:
        raise refuse(
            pointer,
            f"'{loss.type}' needs the group of each row. Upload the file again with "
            f'columns={{"group": "…"}}; its columns are {", ".join(facts.headers)}.',
            "missing_groups",
        )
    is_frozen = spec.tuning.type == "frozen"
    if is_frozen and ({"embeddings", "adversarial"} & loss.needs):
        raise refuse(
            pointer,
            f"'{loss.type}' trains the encoder, but tuning 'frozen' leaves nothing of it to train. Use tuning 'full'.",
            "nothing_to_train",
        )
    if spec.training.compile and "adversarial" in loss.needs:
        raise refuse(
            "/training/compile",
            f"'{loss.type}' moves word embeddings inside the network, where compiled code cannot be reached. Leave "
            f"'compile' out, or '{loss.type}'.",
        )
    given = spec.training.dropout
    has_dropout = given > 0 if given is not None else not is_frozen and base.dropout != 0
    has_dropout = has_dropout or getattr(spec.tuning, "dropout", 0) > 0
    if "second_forward" in loss.needs and not has_dropout:
        raise refuse(
            pointer,
            f"'{loss.type}' needs dropout above 0; this model has 0, so its two passes would be the same and the term "
            "always 0. Set training.dropout, e.g. 0.1.",
            "needs_dropout",
        )


def _check_labels_needed(pointer: str, loss: LossSpec, kind: str) -> None:
    if loss.type == "supcon" and kind == "distributions":
        raise refuse(
            f"{pointer}/type",
            "'supcon' needs one label a row to know which rows belong together, but the cells hold distributions.",
            "loss_does_not_fit",
        )


def _check_coupling(loss: LossSpec, spec: JobSpec, train_counts: Mapping[str, int]) -> list[str]:
    if loss.type != "supcon" or not train_counts or spec.training.sampler.type == "m_per_class":
        return []
    total = sum(train_counts.values())
    rows = spec.training.batch_size
    # A row is without a positive when none of the other rows of its step has its label.
    alone = sum(count / total * (1 - count / total) ** (rows - 1) for count in train_counts.values())
    if alone < 0.25:
        return []
    return [
        f"supcon: batch {rows} over {len(train_counts)} labels leaves about {alone:.0%} of rows without a positive."
    ]


def _check_imbalance(pointer: str, loss: LossSpec, train_counts: Mapping[str, int], spec: JobSpec) -> list[str]:
    """logit_adjusted and ldam work from the rows of each label, so each must have some."""
    if loss.type not in ("logit_adjusted", "ldam"):
        return []
    if empty := [label for label, rows in train_counts.items() if rows == 0]:
        raise refuse(
            f"{pointer}/type",
            f"label {quoted(empty)} has 0 training rows, and '{loss.type}' needs each label's frequency. Add rows "
            "of it, or take smaller shares for validation and test.",
            "label_without_rows",
        )
    deferred = getattr(loss, "deferred_epoch", None)
    if deferred is not None and deferred >= spec.training.epochs:
        return [f"deferred_epoch is {deferred}, and training has {spec.training.epochs} epochs: it never takes effect."]
    return []


def _check_together(loss: Any, pointers: Sequence[str], task: TaskType) -> list[str]:
    terms = terms_of(loss)
    tasks = [(pointer, term.loss) for pointer, term in zip(pointers, terms, strict=True) if not term.loss.auxiliary_for]
    if not tasks:
        raise refuse(
            pointers[0], f"'{terms[0].loss.type}' is an auxiliary term; add a task loss beside it.", "no_task_loss"
        )
    first_pointer, first = tasks[0]
    for pointer, other in tasks[1:]:
        if _head_of(first, task) != _head_of(other, task):
            raise refuse(
                f"{pointer}/type",
                f"'{other.type}' reads the model's outputs otherwise than '{first.type}' at {first_pointer}: one head "
                "cannot serve both. Combine losses of one kind.",
                "terms_do_not_fit",
            )
    for alone in ("fgm", "kd"):  # a step makes one adversarial pass, and knows one teacher
        if len(places := [place for place, term in zip(pointers, terms, strict=True) if term.loss.type == alone]) > 1:
            raise refuse(
                f"{places[1]}/type", f"'{alone}' may stand once; the first is at {places[0]}.", "repeated_term"
            )
    for pointer, term in zip(pointers, terms, strict=True):
        reading = first.readings[task]
        if term.loss.type in ("r_drop", "entropy_min", "kd") and reading not in SOFTMAX_READINGS | SIGMOID_READINGS:
            raise refuse(
                f"{pointer}/type",
                f"'{term.loss.type}' compares distributions over labels, and '{first.type}' gives one number for "
                f"'{task}'. Use it beside cross_entropy, coral or corn.",
                "terms_do_not_fit",
            )
    weighted = [loss for _, loss in tasks if getattr(loss, "class_weights", None) is not None]
    adjusted = [loss for _, loss in tasks if loss.type in ("logit_adjusted", "ldam")]
    if weighted and adjusted:
        return [f"{adjusted[0].type} and class_weights both correct imbalance; use one."]
    return []


def _head_of(loss: LossSpec, task: TaskType) -> tuple[Any, ...]:
    """What losses must agree on to share a head."""
    scale = getattr(loss, "scale", None) if loss.head == "cosine" else None
    return loss.readings[task], loss.head, scale, getattr(loss, "quantiles", None)


def _some(task: TaskType, without: set[str]) -> str:
    names = [name for name in losses_for(task) if name not in without]
    return ", ".join(names[:6])
