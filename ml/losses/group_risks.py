"""Cross-entropy by group, for losses that couple the rows of a step through the means of their groups."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ml.losses.base import IGNORED, Targets
from ml.models.outputs import Outputs


@dataclass(frozen=True)
class GroupRisks:
    """Of the rows of a step; those with an ignored label count nowhere. G: groups there are, present or not."""

    groups: Tensor  # (B,) the number of each row's group
    losses: Tensor  # (B,) cross-entropy
    row_scale: Tensor  # (B,) rows of the step / rows of the row's group, 0 for an ignored row
    risks: Tensor  # (G,) mean loss of each group, 0 for one that is absent
    is_present: Tensor  # (G,) 1 for a group with rows, else 0


def group_risks(outputs: Outputs, targets: Targets, groups: int) -> GroupRisks:
    """Raise ValueError where rows came without their groups."""
    if targets.groups is None:
        raise ValueError("this loss needs the group of each row, and the targets have none")
    losses = functional.cross_entropy(outputs.logits, targets.labels, ignore_index=IGNORED, reduction="none")
    counted = (targets.labels != IGNORED).to(losses.dtype)  # (B,)
    # A sum over one-hot rows, as index_add is not deterministic on a GPU.
    belongs = functional.one_hot(targets.groups, groups) * counted[:, None]  # (B, G)
    rows = belongs.sum(0)
    some_rows = rows.clamp_min(1)  # an absent group has a sum of 0 above it
    return GroupRisks(
        groups=targets.groups,
        losses=losses,
        row_scale=counted * counted.sum() / some_rows[targets.groups],
        risks=(belongs * losses[:, None]).sum(0) / some_rows,
        is_present=(rows > 0).to(losses.dtype),
    )
