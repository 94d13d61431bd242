"""The table of losses, and how a spec becomes one."""

from collections.abc import Mapping, Sequence

import torch

from ml.losses.base import Loss
from ml.losses.cross_entropy import CrossEntropyLoss
from ml.losses.focal import FocalLoss
from ml.specs.losses import CrossEntropySpec, FocalSpec, LossSpec
from ml.tasks.class_weights import weigh_labels

LOSSES: dict[type[LossSpec], type[Loss]] = {
    CrossEntropySpec: CrossEntropyLoss,
    FocalSpec: FocalLoss,
}

# Fields that a user keys by label name, and a loss wants as a (C,) tensor.
PER_LABEL_FIELDS = ("class_weights", "alpha")


def build_loss(spec: LossSpec, labels: Sequence[str], train_counts: Mapping[str, int]) -> Loss:
    """The loss a spec asks for. labels: their order in the head; train_counts: training rows by label."""
    arguments = {name: getattr(spec, name) for name in type(spec).model_fields if name != "type"}
    for name in PER_LABEL_FIELDS:
        if name in arguments:
            weights = weigh_labels(arguments[name], labels, train_counts)
            arguments[name] = None if weights is None else torch.from_numpy(weights)
    return LOSSES[type(spec)](**arguments)
